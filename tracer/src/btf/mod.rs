//! BTF: the kernel's description of its own types, read from bytes.
