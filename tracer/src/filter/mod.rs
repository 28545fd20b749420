//! What to trace: a small part of pcap-filter(7), compiled to a [`tracer_common::filter::Program`].
