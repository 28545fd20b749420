//! The configuration that user space writes before the programs are loaded.
//!
//! Each field is read with a volatile read, so that the compiler cannot fold in the placeholder below; the kernel's
//! verifier then knows the real, frozen values and drops the branches that cannot be taken.

use tracer_common::config::Config;
use tracer_common::filter::Program;
use tracer_common::offsets::Offsets;

/// Replaced by the loader.
#[unsafe(no_mangle)]
pub static CONFIG: Config = Config {
    per_cpu_offset: 0,
    recseq: 0,
    argument_order: 0,
    state_hook_bytes: 0,
    netns: 0,
    snapshot_pages: 0,
    wakeup_bytes: 0,
    filter_window: 0,
    filter_link_bytes: 0,
    throttled: 0,
    count_by: 0,
    timed: 0,
    casts: 0,
    offsets: Offsets::UNRESOLVED,
    reserved_after_offsets: [0; Config::OFFSETS_PADDING],
    filter: Program::ANY,
};

/// A field of [`CONFIG`], as the loader wrote it.
#[inline(always)]
pub fn field<T: Copy>(field: &'static T) -> T {
    // SAFETY: a valid reference; volatile because the loader replaces the bytes.
    unsafe { core::ptr::read_volatile(field) }
}

/// A field of the configuration.
macro_rules! config {
    ($($field:tt)+) => {
        $crate::config::field(&$crate::config::CONFIG.$($field)+)
    };
}

/// A field offset, as a number to add to an address.
macro_rules! offset {
    ($field:ident) => {
        u64::from($crate::config::config!(offsets.$field))
    };
}

/// A field of a kernel structure to which there is a typed pointer. One instruction, into which the loader writes where the
/// field is: with an offset from [`CONFIG`] it takes six more.
macro_rules! load {
    ($structure:expr, $field:ident: $number:ident) => {{
        const AT: usize = ::core::mem::offset_of!(::tracer_common::offsets::Offsets, $field) / size_of::<u32>();
        let value: u64;
        // SAFETY: the kernel catches faults of such loads, and they clear what they do not fill of the register.
        unsafe {
            ::core::arch::asm!(
                concat!("{0} = *(", stringify!($number), " *)({1} + {2})"),
                out(reg) value,
                in(reg) $structure,
                const ::tracer_common::offsets::PLACEHOLDER + AT,
                options(pure, readonly, nostack, preserves_flags)
            );
            ::core::hint::assert_unchecked(value <= $number::MAX as u64);
        }
        value as $number
    }};
}

pub(crate) use {config, load, offset};
