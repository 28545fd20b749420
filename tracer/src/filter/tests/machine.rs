//! Runs translated filters, more strictly than a kernel would: every register and byte that is read was written before,
//! memory is the workspace alone, helpers read the packet alone, jumps go forward.

use crate::filter::ebpf::{Instruction, PROBE_READ_KERNEL};
use crate::filter::translate::Translated;
use std::mem::offset_of;
use tracer_common::translated::{MEMORY_WORDS, ROOM, WINDOW_BYTES, Workspace};

const WORKSPACE: u64 = 0xffff_c900_0000_1000;
const PACKET: u64 = 0xffff_8881_0000_0010;

struct Machine<'a> {
    packet: &'a [u8],
    registers: [Option<u64>; 10],
    memory: Vec<Option<u8>>,
}

/// Whether a packet of `length` bytes matches whose first ones are `packet`.
pub(super) fn matches(filter: &Translated, packet: &[u8], length: u32) -> bool {
    let mut machine = Machine { packet, registers: [None; 10], memory: vec![None; size_of::<Workspace>()] };
    let window = filter.window as usize;
    assert!(window.is_multiple_of(8) && (8..=WINDOW_BYTES).contains(&window));
    for at in 0..window {
        // What lies behind the packet can be read, too.
        machine.memory[at] = Some(packet.get(at).copied().unwrap_or(0xa5));
    }
    machine.put(offset_of!(Workspace, start), &PACKET.to_le_bytes());
    machine.put(offset_of!(Workspace, linear), &(packet.len() as u32).to_le_bytes());
    machine.put(offset_of!(Workspace, length), &length.to_le_bytes());
    machine.registers[1] = Some(WORKSPACE);
    assert_eq!(filter.instructions.len(), ROOM);
    let mut next = 0;
    while next < ROOM {
        next = machine.step(next, filter.instructions[next]);
    }
    match machine.get(0) {
        0 => false,
        1 => true,
        other => panic!("answer {other}"),
    }
}

impl Machine<'_> {
    fn get(&self, register: u8) -> u64 {
        self.registers[usize::from(register)].unwrap_or_else(|| panic!("register {register} is empty"))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (place, byte) in self.memory[at..][..bytes.len()].iter_mut().zip(bytes) {
            *place = Some(*byte);
        }
    }

    fn place(address: u64, bytes: usize) -> usize {
        let at = address.checked_sub(WORKSPACE).expect("in the workspace") as usize;
        assert!(at + bytes <= size_of::<Workspace>(), "behind the workspace");
        assert!(at + bytes <= WINDOW_BYTES || at >= WINDOW_BYTES, "across the window's end");
        at
    }

    fn step(&mut self, at: usize, instruction: Instruction) -> usize {
        let Instruction { code, destination, source, offset, immediate } = instruction;
        let operand = |machine: &Self| {
            if code & 8 == 0 { i64::from(immediate).cast_unsigned() } else { machine.get(source) }
        };
        match code & 7 {
            // LDX, STX
            1 | 3 => {
                assert_eq!(code & 0xe0, 0x60);
                let bytes = match code & 0x18 {
                    0x10 => 1,
                    0x08 => 2,
                    0x00 => 4,
                    _ => 8,
                };
                let base = self.get(if code & 7 == 1 { source } else { destination });
                let place = Self::place(base.wrapping_add_signed(offset.into()), bytes);
                if code & 7 == 1 {
                    let value = (0..bytes).fold(0, |value, index| {
                        let byte = self.memory[place + index].expect("something was put there");
                        value | u64::from(byte) << (8 * index)
                    });
                    self.registers[usize::from(destination)] = Some(value);
                } else {
                    self.put(place, &self.get(source).to_le_bytes()[..bytes]);
                }
            }
            4 if code == 0xdc => {
                let value = self.get(destination);
                let swapped = match immediate {
                    16 => u64::from((value as u16).swap_bytes()),
                    32 => u64::from((value as u32).swap_bytes()),
                    other => panic!("swap of {other} bits"),
                };
                self.registers[usize::from(destination)] = Some(swapped);
            }
            4 => {
                let operand = operand(self) as u32;
                let value = if code & 0xf0 == 0xb0 { 0 } else { self.get(destination) as u32 };
                let result = match code & 0xf0 {
                    0x00 => value.wrapping_add(operand),
                    0x10 => value.wrapping_sub(operand),
                    0x20 => value.wrapping_mul(operand),
                    0x30 => value.checked_div(operand).expect("no division by zero"),
                    0x40 => value | operand,
                    0x50 => value & operand,
                    0x60 => value.checked_shl(operand).expect("no shift by all bits"),
                    0x70 => value.checked_shr(operand).expect("no shift by all bits"),
                    0x80 => value.wrapping_neg(),
                    0x90 => value.checked_rem(operand).expect("no division by zero"),
                    0xa0 => value ^ operand,
                    0xb0 => operand,
                    other => panic!("arithmetic {other:#x}"),
                };
                self.registers[usize::from(destination)] = Some(result.into());
            }
            7 => {
                let operand = operand(self);
                let result = match code & 0xf0 {
                    0x00 => self.get(destination).wrapping_add(operand),
                    0xb0 => operand,
                    other => panic!("wide arithmetic {other:#x}"),
                };
                self.registers[usize::from(destination)] = Some(result);
            }
            5 if code == 0x85 => self.call(immediate),
            class @ (5 | 6) => {
                assert!(offset >= 0, "back from {at}");
                let jump = code == 0x05 || {
                    let (mut left, mut right) = (self.get(destination), operand(self));
                    if class == 6 {
                        (left, right) = (u64::from(left as u32), u64::from(right as u32));
                    }
                    match code & 0xf0 {
                        0x10 => left == right,
                        0x20 => left > right,
                        0x30 => left >= right,
                        0x40 => left & right != 0,
                        0x50 => left != right,
                        0xa0 => left < right,
                        0xb0 => left <= right,
                        0xc0 if class == 6 => (left as u32).cast_signed() < (right as u32).cast_signed(),
                        other => panic!("comparison {other:#x}"),
                    }
                };
                return at + 1 + if jump { usize::from(offset.cast_unsigned()) } else { 0 };
            }
            class => panic!("class {class}"),
        }
        at + 1
    }

    fn call(&mut self, helper: i32) {
        assert_eq!(helper, PROBE_READ_KERNEL);
        let (to, bytes, from) = (self.get(1), self.get(2) as usize, self.get(3));
        let from = from.checked_sub(PACKET).expect("in the packet") as usize;
        let read = self.packet[from..from + bytes].to_vec();
        self.put(Self::place(to, bytes), &read);
        self.registers[1..=5].fill(None);
        self.registers[0] = Some(0);
    }
}

/// Words of scratch memory are where the translator believes.
const _: () = assert!(size_of::<Workspace>() == WINDOW_BYTES + 16 + 4 * MEMORY_WORDS + 8);
