//! How long to wait before trying again: doubling from the first delay to the last, with jitter.

use crate::model::name::Name;
use crate::model::spec::Restart;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Jitter adds up to a quarter: enough that a hundred workloads felled by one cause do not come back in one instant, little enough that
/// the delay stays what the manifest says.
const JITTER_DIVISOR: u32 = 4;

/// What doubling starts from where the first delay is (next to) nothing: one instant restart is a feature, a loop of them is a fault.
const STEP_MIN: Duration = Duration::from_millis(10);

/// The delay before the next start after `failures` failures in a row (at least one). `entropy` is drawn once for each controller.
pub fn delay(restart: &Restart, failures: u32, name: &Name, entropy: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let first = if doublings == 0 { restart.initial_delay } else { restart.initial_delay.max(STEP_MIN) };
    let base = first.saturating_mul(1 << doublings);
    let more = jitter(base, failures, name, entropy).map(|jitter| base.saturating_add(jitter));
    more.filter(|more| *more <= restart.max_delay).unwrap_or_else(|| last(restart, failures, name, entropy))
}

/// The longest delay. Its jitter is taken off: what has failed for long enough to wait for it has so together with others.
pub fn last(restart: &Restart, failures: u32, name: &Name, entropy: u64) -> Duration {
    let longest = restart.max_delay;
    longest.saturating_sub(jitter(longest, failures, name, entropy).unwrap_or_default())
}

fn jitter(delay: Duration, failures: u32, name: &Name, entropy: u64) -> Option<Duration> {
    Some((delay / JITTER_DIVISOR).checked_mul(fraction(name, failures, entropy))? / FRACTION_END)
}

pub(super) const FRACTION_END: u32 = 1 << 16;

/// A number below [`FRACTION_END`] that depends on nothing but its inputs.
pub(super) fn fraction(name: &Name, failures: u32, entropy: u64) -> u32 {
    let digest = Sha256::new()
        .chain_update(entropy.to_le_bytes())
        .chain_update(name.as_str())
        .chain_update(failures.to_le_bytes());
    let bytes = digest.finalize();
    u32::from(u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::RestartPolicy;
    use std::collections::BTreeSet;

    #[test]
    fn delays_double_up_to_the_last_with_at_most_a_quarter_of_jitter() {
        let seconds = Duration::from_secs;
        let restart = Restart {
            policy: RestartPolicy::Always,
            initial_delay: seconds(1),
            max_delay: seconds(60),
            reset_after: seconds(600),
        };
        let name: Name = "web".parse().unwrap();
        for (failures, base) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)] {
            let delay = delay(&restart, failures, &name, 7);
            // The last one is a bound: its jitter is taken off.
            let base = if base == 60 { seconds(base) * 3 / 4 } else { seconds(base) };
            assert!(delay >= base && delay <= (base * 5 / 4).min(seconds(60)), "{failures}: {delay:?}");
        }
        let felled = |failures| -> BTreeSet<Duration> {
            (0..20).map(|at| delay(&restart, failures, &format!("web.{at}").parse().unwrap(), 7)).collect()
        };
        assert_eq!([1, 4, 7, 1000].map(|failures| felled(failures).len()), [20; 4], "together they came back");
        assert_ne!(delay(&restart, 1, &name, 7), delay(&restart, 1, &"db".parse().unwrap(), 7));
        assert_eq!(delay(&restart, 1, &name, 7), delay(&restart, 1, &name, 7));
    }

    #[test]
    fn an_instant_restart_happens_once() {
        let second = Duration::from_secs(1);
        let eager = Restart {
            policy: RestartPolicy::Always,
            initial_delay: Duration::ZERO,
            max_delay: second,
            reset_after: second,
        };
        let name = "web".parse().unwrap();
        assert_eq!(delay(&eager, 1, &name, 7), Duration::ZERO);
        assert!(delay(&eager, 2, &name, 7) >= Duration::from_millis(20));
        let longest = delay(&eager, 20, &name, 7);
        assert!(longest <= second && longest >= second * 3 / 4, "{longest:?}");
    }
}
