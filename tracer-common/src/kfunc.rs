//! What programs have in place of the kernel's own functions and types.
//!
//! In the object, a call of such a function is that of a helper that no kernel has, and a type is a number that nothing
//! else is. User space puts their BTF ids there before it loads a program.

/// `bpf_session_is_return(context)`: whether a program runs at the return of the function. Before Linux 7.0 it does not look at
/// the context.
pub const IS_RETURN: i32 = 0x6e66_0001;
/// `bpf_rdonly_cast(address, type)`: a pointer to a structure, of which the kernel makes a plain move.
pub const CAST: i32 = 0x6e66_0002;
/// `bpf_preempt_disable()`. A kernel without one of these four gets none of them.
pub const PREEMPT_DISABLE: i32 = 0x6e66_0003;
/// `bpf_preempt_enable()`
pub const PREEMPT_ENABLE: i32 = 0x6e66_0004;
/// `bpf_local_irq_save(flags)`
pub const IRQ_SAVE: i32 = 0x6e66_0005;
/// `bpf_local_irq_restore(flags)`
pub const IRQ_RESTORE: i32 = 0x6e66_0006;

/// `struct sk_buff`
pub const SKB: i32 = 0x6e66_0011;
/// `struct nf_hook_state`
pub const HOOK_STATE: i32 = 0x6e66_0012;
/// `struct timespec64`, for a plain number that is part of nothing the verifier knows: it begins with one.
pub const NUMBER: i32 = 0x6e66_0013;
