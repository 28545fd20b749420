//! How programs of a kprobe.session call functions of the kernel.
//!
//! In the object such a call is that of a helper that no kernel has. User space puts the function's BTF id in its place
//! before it loads the program.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// In place of `bpf_session_is_return`: whether a program runs at the return of the function. It gets the context, which
/// kernels before 7.0 do not look at.
pub const IS_RETURN: i32 = 0x6e66_0001;
/// In place of `bpf_rdonly_cast`: an address as a pointer to a structure, by the structure's BTF id. The kernel makes
/// a plain move of it.
pub const CAST: i32 = 0x6e66_0002;

/// What the programs are told of the structures that they look at.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SessionConfig {
    /// BTF id of `struct sk_buff`.
    pub skb: u32,
    /// BTF id of `struct nf_hook_state`.
    pub hook_state: u32,
}

impl SessionConfig {
    /// Where there is no session.
    pub const NONE: Self = Self { skb: 0, hook_state: 0 };
}
