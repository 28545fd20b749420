//! Where a translated filter lives in the kernel programs, and what it works on.
//!
//! A filter that libpcap compiled is translated to instructions of the kernel's, which user space writes over the
//! placeholder in the object before it is loaded: [`ROOM`] instructions, the first two of which load [`MARKER`]. They
//! find the address of a [`Workspace`] in register 1 and leave in register 0 whether the packet matches. Registers 1 to
//! 9 are theirs; they end by running out of the room.

/// Instructions that a translated filter has room for.
pub const ROOM: usize = 4096;
/// What the placeholder begins with.
pub const MARKER: u64 = 0x6e66_745f_7063_6170;
/// First bytes of a packet that can be at hand.
pub const WINDOW_BYTES: usize = 128;
/// Words of classic BPF's scratch memory.
pub const MEMORY_WORDS: usize = 16;

/// What a translated filter works on: in a map, one for each CPU.
#[repr(C)]
pub struct Workspace {
    /// The packet's first bytes; those that the packet does not have are of no meaning.
    pub window: [u8; WINDOW_BYTES],
    /// Address of the packet's first byte.
    pub start: u64,
    /// Bytes of the packet that follow one another in memory, from its first on. Below 2³¹.
    pub linear: u32,
    /// Bytes of the packet.
    pub length: u32,
    /// Classic BPF's scratch memory.
    pub memory: [u32; MEMORY_WORDS],
    /// What is read from outside of the window.
    pub outside: [u8; 8],
}
