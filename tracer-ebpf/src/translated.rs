//! The room for a filter that user space translates from libpcap's.

use crate::config::{config, offset};
use crate::kernel::{Access, copy};
use crate::maps::WORKSPACE;
use crate::select::{Layout, packet};
use core::arch::asm;
use tracer_common::translated::{MARKER, ROOM, WINDOW_BYTES};

/// Whether the packet matches.
#[inline(always)]
pub fn matches<A: Access>(skb: u64, layout: Layout) -> bool {
    let Some(packet) = packet::<A>(skb, layout) else { return false };
    let link = config!(filter_link_bytes);
    if layout == Layout::ARP {
        // Before it is sent, the skb does not say where its frame begins.
        if link == 0 {
            return false;
        }
    } else if link != 0 {
        let mac_header = A::field::<u16>(skb, offset!(skb_mac_header)).unwrap_or(0);
        // Without such a header there is nothing that the filter could look at.
        if u32::from(packet.network_header).wrapping_sub(u32::from(mac_header)) != link {
            return false;
        }
    }
    let linear = packet.linear();
    // Never so for a real packet, and translated filters rely on it.
    if linear > i32::MAX as u32 - link {
        return false;
    }
    let Some(workspace) = WORKSPACE.get_ptr_mut(0) else { return false };
    // SAFETY: a per-CPU map value of this program's own. Through memory the head becomes a number: newer verifiers know
    // it as a pointer, which no global function takes.
    unsafe { core::ptr::write_volatile(&raw mut (*workspace).start, packet.head) };
    let offset = u64::from(packet.network_header).wrapping_sub(u64::from(link));
    run_translated(offset, linear + link, packet.len + link) != 0
}

/// Runs the translated filter on a packet that begins at this offset from the address in the workspace, has `linear` bytes
/// there and `length` in all.
///
/// A global function: the kernel's verifier looks at it by itself, for any arguments. What is in the room is written
/// over before the object is loaded; as it is compiled it matches no packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn run_translated(offset: u64, linear: u32, length: u32) -> u32 {
    let Some(workspace) = WORKSPACE.get_ptr_mut(0) else { return 0 };
    let bytes = config!(filter_window);
    if bytes > WINDOW_BYTES as u32 {
        return 0;
    }
    let matches: u64;
    // SAFETY: a per-CPU map value of this program's own. What is written over the room keeps to the registers named
    // here and to the workspace; the kernel's verifier proves the rest.
    unsafe {
        let start = core::ptr::read_volatile(&raw const (*workspace).start).wrapping_add(offset);
        if !copy((&raw mut (*workspace).window).cast::<u8>(), bytes, start) {
            return 0;
        }
        (*workspace).start = start;
        (*workspace).linear = linear;
        (*workspace).length = length;
        asm!(
            "r0 = {marker} ll",
            "r0 = 0",
            // Always, which the verifier finds out: it takes the rest away and need not look at it.
            "if r0 == 0 goto +{fill}",
            ".rept {fill}",
            "r0 = 0",
            ".endr",
            marker = const MARKER,
            fill = const ROOM - 4,
            inout("r1") workspace => _,
            out("r0") matches,
            out("r2") _,
            out("r3") _,
            out("r4") _,
            out("r5") _,
            out("r6") _,
            out("r7") _,
            out("r8") _,
            out("r9") _,
        );
    }
    matches as u32
}
