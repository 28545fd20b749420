//! libpcap's compiler of packet filters, where it is linked.
//!
//! `cargo xtask build` links it; a build without it says so. Names of services and protocols are looked up in
//! `/etc/services` and `/etc/protocols`; a statically linked C library could not. Hosts and networks are never looked
//! up: no name server hears of a filter.

use crate::filter::LibpcapError;
use crate::filter::LinkType;
use crate::filter::classic::Instruction;

/// Whether libpcap is part of this build.
pub const LINKED: bool = cfg!(libpcap);

/// Compiles an expression.
#[cfg(not(libpcap))]
pub fn compile(_link: LinkType, _text: &str) -> Result<Vec<Instruction>, LibpcapError> {
    Err(LibpcapError::Absent)
}

/// What libpcap's own interpreter says about a packet whose captured part is `packet`, of `length` bytes in all; `None`
/// in a build without libpcap.
///
/// The program must be one that [`compile`] returned: the interpreter trusts it.
#[cfg(not(libpcap))]
pub fn matches(_program: &[Instruction], _packet: &[u8], _length: u32) -> Option<bool> {
    None
}

#[cfg(libpcap)]
pub use linked::{compile, matches};

#[cfg(libpcap)]
#[expect(unsafe_code, reason = "libpcap is written in C")]
mod linked {
    use super::{Instruction, LibpcapError, LinkType};
    use std::ffi::{CStr, CString, c_char, c_int, c_uint};
    use std::ptr::{self, NonNull};

    #[repr(C)]
    struct Program {
        len: c_uint,
        instructions: *mut Instruction,
    }

    /// `struct pcap_pkthdr`.
    #[repr(C)]
    struct PacketHeader {
        time: libc::timeval,
        captured: u32,
        length: u32,
    }

    #[repr(C)]
    struct Pcap {
        _opaque: [u8; 0],
    }

    // SAFETY: as <pcap/pcap.h> declares them.
    unsafe extern "C" {
        fn pcap_open_dead(linktype: c_int, snaplen: c_int) -> *mut Pcap;
        fn pcap_close(pcap: *mut Pcap);
        fn pcap_compile(
            pcap: *mut Pcap,
            program: *mut Program,
            text: *const c_char,
            optimize: c_int,
            netmask: u32,
        ) -> c_int;
        fn pcap_freecode(program: *mut Program);
        fn pcap_geterr(pcap: *mut Pcap) -> *mut c_char;
        fn pcap_offline_filter(
            program: *const Program,
            header: *const PacketHeader,
            packet: *const u8,
        ) -> c_int;
    }

    const DLT_EN10MB: c_int = 1;
    const DLT_RAW: c_int = 12;
    /// As tcpdump has it.
    const SNAPLEN: c_int = 262_144;
    const PCAP_NETMASK_UNKNOWN: u32 = u32::MAX;

    struct Handle(NonNull<Pcap>);

    impl Drop for Handle {
        fn drop(&mut self) {
            // SAFETY: opened, and closed only here.
            unsafe { pcap_close(self.0.as_ptr()) }
        }
    }

    /// Compiles an expression.
    pub fn compile(link: LinkType, text: &str) -> Result<Vec<Instruction>, LibpcapError> {
        let refused = |message: &str| LibpcapError::Refused(message.to_owned());
        let text = CString::new(text).map_err(|_| refused("a NUL character"))?;
        let link = match link {
            LinkType::Raw => DLT_RAW,
            LinkType::Ethernet => DLT_EN10MB,
        };
        // SAFETY: no preconditions.
        let pcap = unsafe { pcap_open_dead(link, SNAPLEN) };
        let pcap = Handle(NonNull::new(pcap).ok_or(refused("out of memory"))?);
        let mut program = Program { len: 0, instructions: ptr::null_mut() };
        // SAFETY: all pointers are valid for the call. The compiler's state is the handle's alone.
        let status =
            unsafe { pcap_compile(pcap.0.as_ptr(), &mut program, text.as_ptr(), 1, PCAP_NETMASK_UNKNOWN) };
        if status != 0 {
            // SAFETY: a string within the handle.
            let message = unsafe { CStr::from_ptr(pcap_geterr(pcap.0.as_ptr())) };
            return Err(refused(&message.to_string_lossy()));
        }
        // SAFETY: libpcap filled in the program, whose instructions have the same layout.
        let instructions =
            unsafe { std::slice::from_raw_parts(program.instructions, program.len as usize) }.to_vec();
        // SAFETY: made by libpcap, and freed only here.
        unsafe { pcap_freecode(&mut program) };
        Ok(instructions)
    }

    /// What libpcap's own interpreter says about a packet whose captured part is `packet`, of `length` bytes in all;
    /// `None` in a build without libpcap.
    ///
    /// The program must be one that [`compile`] returned: the interpreter trusts it.
    pub fn matches(program: &[Instruction], packet: &[u8], length: u32) -> Option<bool> {
        let time = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let header = PacketHeader { time, captured: packet.len() as u32, length };
        let mut instructions = program.to_vec();
        let program = Program { len: instructions.len() as c_uint, instructions: instructions.as_mut_ptr() };
        // SAFETY: the interpreter reads within the program, which libpcap made, and the captured bytes.
        Some(unsafe { pcap_offline_filter(&program, &header, packet.as_ptr()) != 0 })
    }

    /// What libpcap asks for names: its look-ups are compiled to these, whose names nothing else has, and whose signatures
    /// are those of the functions of the C library that they stand for.
    mod names {
        use std::cell::UnsafeCell;
        use std::ffi::{CStr, CString, c_char, c_int};
        use std::fs;
        use std::ptr;

        /// Addresses are only read, never looked up; a service becomes its number.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn nftracer_getaddrinfo(
            node: *const c_char,
            service: *const c_char,
            hints: *const libc::addrinfo,
            found: *mut *mut libc::addrinfo,
        ) -> c_int {
            // SAFETY: libpcap passes valid hints, strings or null, and a place for the answer, as getaddrinfo wants it.
            unsafe {
                let mut hints = ptr::read(hints);
                if !node.is_null() {
                    hints.ai_flags |= libc::AI_NUMERICHOST;
                    return libc::getaddrinfo(node, service, &hints, found);
                }
                let protocol = match hints.ai_protocol {
                    libc::IPPROTO_UDP => "udp",
                    _ => "tcp",
                };
                let name = CStr::from_ptr(service).to_string_lossy();
                let Some(number) = port(&name, protocol) else { return libc::EAI_NONAME };
                let Ok(number) = CString::new(number.to_string()) else { return libc::EAI_NONAME };
                libc::getaddrinfo(node, number.as_ptr(), &hints, found)
            }
        }

        /// Always null: hosts are not looked up.
        #[unsafe(no_mangle)]
        extern "C" fn nftracer_gethostbyname(_name: *const c_char) -> *mut libc::hostent {
            ptr::null_mut()
        }

        /// Always null: networks are not looked up.
        #[unsafe(no_mangle)]
        extern "C" fn nftracer_getnetbyname(_name: *const c_char) -> *mut libc::c_void {
            ptr::null_mut()
        }

        thread_local! {
            static PROTOCOL: UnsafeCell<libc::protoent> = const {
                UnsafeCell::new(libc::protoent { p_name: ptr::null_mut(), p_aliases: ptr::null_mut(), p_proto: 0 })
            };
        }

        /// The answer has a number and no names, and holds until the thread's next question.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn nftracer_getprotobyname(name: *const c_char) -> *mut libc::protoent {
            // SAFETY: libpcap passes a string.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
            let Some(number) = protocol(&name) else { return ptr::null_mut() };
            PROTOCOL.with(|answer| {
                // SAFETY: this thread's own, and libpcap is done with the previous answer.
                unsafe { (*answer.get()).p_proto = number };
                answer.get()
            })
        }

        fn port(name: &str, protocol: &str) -> Option<u16> {
            if let Ok(number) = name.parse() {
                return Some(number);
            }
            let services = fs::read_to_string("/etc/services").ok()?;
            find(&services, name).find_map(|value| {
                let (port, of) = value.split_once('/')?;
                if of == protocol { port.parse().ok() } else { None }
            })
        }

        fn protocol(name: &str) -> Option<c_int> {
            let known = || {
                let (_, number) = KNOWN.iter().find(|(known, _)| *known == name)?;
                Some(*number)
            };
            let protocols = fs::read_to_string("/etc/protocols").unwrap_or_default();
            let listed = find(&protocols, name).find_map(|value| value.parse().ok());
            listed.or_else(known)
        }

        /// For hosts without a list.
        const KNOWN: [(&str, c_int); 12] = [
            ("icmp", 1),
            ("igmp", 2),
            ("tcp", 6),
            ("egp", 8),
            ("udp", 17),
            ("gre", 47),
            ("esp", 50),
            ("ah", 51),
            ("ipv6-icmp", 58),
            ("ospf", 89),
            ("vrrp", 112),
            ("sctp", 132),
        ];

        /// The second words of lines that have `name` as their first or as one behind the second.
        fn find<'a>(list: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
            list.lines().filter_map(move |line| {
                let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
                let (first, value) = (words.next()?, words.next()?);
                (first == name || words.any(|alias| alias == name)).then_some(value)
            })
        }

        #[cfg(test)]
        mod tests {
            use super::find;

            #[test]
            fn lists_have_names_and_other_names() {
                let list = "# names\nhttp 80/tcp www # web\n\ndomain\t53/tcp\ndomain\t53/udp\nodd\n";
                let found = |name| find(list, name).collect::<Vec<_>>();
                assert_eq!(found("http"), ["80/tcp"]);
                assert_eq!(found("www"), ["80/tcp"]);
                assert_eq!(found("domain"), ["53/tcp", "53/udp"]);
                assert!(found("web").is_empty() && found("odd").is_empty() && found("80/tcp").is_empty());
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn names_are_numbers_and_no_name_server_is_asked() {
            let raw = |text: &str| compile(LinkType::Raw, text);
            assert_eq!(raw(r"ip proto \udp"), raw("ip proto 17"));
            assert_eq!(raw(r"ip6 proto \ipv6-icmp"), raw("ip6 proto 58"));
            assert!(raw("port 80").is_ok_and(|program| !program.is_empty()));
            for unknown in ["host example.com", "net example", "port no-such-service", "tcp\0"] {
                assert!(matches!(raw(unknown), Err(LibpcapError::Refused(_))), "{unknown}");
            }
        }
    }
}
