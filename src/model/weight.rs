//! Who gets how much of a contended CPU if nobody says.

use super::spec::CpuClass;

/// `cpu.weight` of a workload that names none: what the kernel gives every group (cgroup-v2.rst), so that workloads are to the rest of the host what
/// any other service is.
pub const WEIGHT_DEFAULT: u32 = 100;

/// The same of one that asks for CPUs by number. Whoever asks for a CPU is to have it when it is contended: beside one sharer that never sleeps it
/// keeps five sixths of it, at equal weights half. Five, because that is the most which takes nothing from a sharer's wake-ups:
/// `benches/wakeup.rs` has the lighter side at 65 us beside 51 with equal weights, and at 116 us with ten to one
/// (docs/decisions/0020-class-weights.md).
pub const WEIGHT_COUNTED: u32 = 500;

impl CpuClass {
    /// The weight of a workload whose manifest names none. Class idle has none: it yields to any weight (`cpu.idle`).
    pub fn weight(self) -> u32 {
        match self {
            CpuClass::Shared | CpuClass::Idle => WEIGHT_DEFAULT,
            CpuClass::Pinned | CpuClass::Exclusive => WEIGHT_COUNTED,
        }
    }
}
