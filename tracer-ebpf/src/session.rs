//! kprobe.session: one program at the entry and the return of the table functions. The entry says whether the return is
//! wanted, which spares packets that nobody follows the dearer half of what a pair of probes costs.

use crate::frame::cpu;
use crate::kernel::{self, Probed, Typed, cast};
use crate::legacy::{self, Call, End};
use crate::{last_rule, probed};
use aya_ebpf::programs::RetProbeContext;
use core::ffi::c_void;
use tracer_common::kfunc;

/// What a program returns at the entry, and at the return, where it does not matter. As long as a traversal is followed, the
/// returns of all that are inside of it have to be seen; otherwise nobody would look at them.
const RETURN_TOO: i32 = 0;
const ENTRY_ONLY: i32 = 1;

/// At `ipt_do_table` and `ip6t_do_table`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "kprobe")]
pub extern "C" fn ip_session(context: *mut c_void) -> i32 {
    if is_return(context) {
        legacy::leave::<Probed>(context, end);
        return RETURN_TOO;
    }
    let followed = legacy::enter::<Typed>(context, |context| {
        let call = probed(context);
        Call {
            skb: cast::<{ kfunc::SKB }>(call.skb),
            state: cast::<{ kfunc::HOOK_STATE }>(call.state),
            ..call
        }
    });
    if followed { RETURN_TOO } else { ENTRY_ONLY }
}

/// At `arpt_do_table`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "kprobe")]
pub extern "C" fn arp_session(context: *mut c_void) -> i32 {
    if is_return(context) {
        legacy::leave::<Probed>(context, end);
        return RETURN_TOO;
    }
    legacy::enter_unselected::<Probed>(context, probed);
    if cpu().depth.get() != 0 { RETURN_TOO } else { ENTRY_ONLY }
}

/// As [`ip_session`], for the last rule alone: the verdict of each packet is looked at.
#[unsafe(no_mangle)]
#[unsafe(link_section = "kprobe")]
pub extern "C" fn last_ip_session(context: *mut c_void) -> i32 {
    if is_return(context) {
        last_rule::leave::<Probed>(context, last_end);
    } else {
        last_rule::enter::<Probed>(&probed(context));
    }
    RETURN_TOO
}

/// As [`arp_session`], likewise.
#[unsafe(no_mangle)]
#[unsafe(link_section = "kprobe")]
pub extern "C" fn last_arp_session(context: *mut c_void) -> i32 {
    if is_return(context) {
        last_rule::leave::<Probed>(context, last_end);
    } else {
        last_rule::enter_unwatched::<Probed>(&probed(context));
    }
    RETURN_TOO
}

/// The arguments are gone by then. The stack is where a return probe finds it.
#[inline(always)]
fn end(context: *mut c_void) -> End {
    let verdict = RetProbeContext::new(context).ret::<u32>();
    End { skb: 0, key: kernel::return_stack_pointer(context), verdict }
}

#[inline(always)]
fn last_end(context: *mut c_void) -> last_rule::End {
    let End { key, verdict, .. } = end(context);
    last_rule::End { call: Call { skb: 0, skb_number: 0, state: 0, table: 0, key }, verdict }
}

#[inline(always)]
fn is_return(context: *mut c_void) -> bool {
    // SAFETY: the loader puts the kernel's function in place of the number. It returns a `bool`, in a register whose other
    // bits may be anything.
    let result = unsafe {
        core::mem::transmute::<usize, unsafe extern "C" fn(*mut c_void) -> u64>(kfunc::IS_RETURN as usize)(
            context,
        )
    };
    result as u8 != 0
}
