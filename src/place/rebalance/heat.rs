//! Which groups are to be relieved: those that stand out for a while, until they do not any more.

use super::groups::Groups;
use super::picture::Picture;
use super::track::Clock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is remembered of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Heat {
    /// Ticks in a row that the group stood out.
    above: u32,
    /// The same for one of its CPUs.
    seat_above: u32,
    /// Since when it has stood out so far that another node is worth its distance.
    far_since_ms: Option<u64>,
    pub hot: bool,
    pub far: bool,
    pub seat_hot: bool,
}

/// By the lowest CPU of each group, like everything that is to outlive a change of other groups.
pub type Heats = BTreeMap<u32, Heat>;

/// The mean level of the groups of each kind of core.
#[derive(Clone, Debug, Default)]
pub struct Means(BTreeMap<u32, u64>);

impl Means {
    pub fn of(groups: &Groups, picture: &Picture) -> Means {
        let mut sums: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (group, load) in groups.list().iter().zip(&picture.loads) {
            let (loads, capacity) = sums.entry(group.kind).or_default();
            (*loads, *capacity) = (*loads + load.all(), *capacity + load.capacity);
        }
        Means(sums.into_iter().map(|(kind, (load, capacity))| (kind, 1000 * load / capacity.max(1))).collect())
    }

    pub fn of_kind(&self, kind: u32) -> u64 {
        self.0.get(&kind).copied().unwrap_or(0)
    }
}

/// How far each group stands above its mean.
pub fn excess(groups: &Groups, picture: &Picture, means: &Means) -> Vec<u64> {
    let above = |(group, load): (&super::groups::Group, &super::picture::Load)| {
        load.level().saturating_sub(means.of_kind(group.kind))
    };
    groups.list().iter().zip(&picture.loads).map(above).collect()
}

/// Brings the heats up to a picture. After a gap nothing was in a row.
pub fn follow(heats: &mut Heats, groups: &Groups, picture: &Picture, excess: &[u64], clock: &Clock<'_>) {
    let settings = clock.settings;
    let mut next = Heats::new();
    for ((group, load), excess) in groups.list().iter().zip(&picture.loads).zip(excess) {
        let mut heat = heats.get(&group.id()).copied().unwrap_or_default();
        if clock.is_gap() {
            heat = Heat::default();
        }
        heat.above = if *excess >= u64::from(settings.enter_permille) { heat.above.saturating_add(1) } else { 0 };
        heat.hot = heat.above >= settings.dwell_ticks || heat.hot && *excess >= u64::from(settings.leave_permille);
        let is_far = *excess >= u64::from(settings.far_enter_permille);
        heat.far_since_ms = is_far.then(|| heat.far_since_ms.unwrap_or(clock.at_ms));
        let lasts = |since_ms: u64| clock.at_ms.saturating_sub(since_ms) >= settings.far_dwell_ms;
        heat.far = heat.far_since_ms.is_some_and(lasts);
        let fullest = group.cpus.iter().map(|cpu| picture.seat_of(cpu)).max().unwrap_or(0);
        let stands_out = fullest.saturating_sub(load.level()) >= u64::from(settings.enter_permille);
        heat.seat_above = if stands_out { heat.seat_above.saturating_add(1) } else { 0 };
        heat.seat_hot = heat.seat_above >= settings.dwell_ticks;
        next.insert(group.id(), heat);
    }
    *heats = next;
}
