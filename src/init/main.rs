//! `containerctl-init`: PID 1 of each workload. The entry point of a program without any library; `supervise` is what it does.
//!
//! Compiled on its own by `build.rs` and embedded in the controller. The other files of this folder are also part of the library, where
//! the tests and the lints see them; this one holds only what a program without a library must bring along.

#![no_std]
#![no_main]

mod clock;
mod log;
mod report;
mod steps;
mod supervise;
mod sys;
mod wire;

use supervise::Memory;

static mut MEMORY: Memory = Memory::new();

/// Where the kernel starts the program, with a stack aligned to 16 bytes (x86-64 psABI, 3.4.1).
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    core::arch::naked_asm!("xor ebp, ebp", "call {main}", "ud2", main = sym main)
}

extern "C" fn main() -> ! {
    // SAFETY: the only reference to MEMORY there is: the program has one thread, and this function runs once.
    let memory = unsafe { &mut *(&raw mut MEMORY) };
    sys::exit(supervise::run(memory))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    /// EX_SOFTWARE of sysexits.h: a bug, not something the workload did.
    const BUG: i32 = 70;
    sys::exit(BUG)
}

// The compiler may call these by name for copies and comparisons it cannot unroll; without libc we bring them. `rep movsb` is what a
// modern processor does best (ERMS), and loops here could be compiled into calls of themselves.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller guarantees `len` readable and writable bytes that do not overlap; the direction flag is clear by the ABI.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: the ranges do not overlap in the direction of copying.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: as the caller guarantees; copying from the end with the direction flag set, which is cleared again before anything else.
    unsafe {
        core::arch::asm!("std", "rep movsb", "cld", inout("rcx") len => _, inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller guarantees `len` writable bytes.
    unsafe {
        core::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8, options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller guarantees `len` readable bytes behind both; volatile reads keep this loop from becoming a call of itself.
    let differs = |at: usize| unsafe { a.add(at).read_volatile() != b.add(at).read_volatile() };
    i32::from((0..len).any(differs))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: as for bcmp.
    let at = |at: usize| unsafe { (i32::from(a.add(at).read_volatile()), i32::from(b.add(at).read_volatile())) };
    (0..len).map(at).find(|(x, y)| x != y).map_or(0, |(x, y)| x - y)
}
