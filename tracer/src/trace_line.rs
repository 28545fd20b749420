//! The line that the kernel's syslog logger prints for a traced packet.
