//! Who is kept to single CPUs.

use super::*;

/// Two nodes of four CPUs, each one group.
fn two_small_nodes() -> Topology {
    let nodes: [CpuSet; 2] = ["0-3", "4-7"].map(|node| node.parse().unwrap());
    let numa = (0..).zip(nodes.clone()).collect();
    Topology { packages: nodes.to_vec(), llcs: nodes.to_vec(), nodes: numa, ..flat(8) }
}

#[test]
fn those_who_share_a_cpu_are_parted_across_nodes_that_stand_all_but_level() {
    let pinned = |name, cpu| (name, member(CpuClass::Pinned, cpu, 1000));
    let (alone, crowded) = ([pinned("a", "2"), pinned("b", "3")], ["c", "d"].map(|name| pinned(name, "0")));
    let (also, there) = (["e", "f"].map(|name| pinned(name, "1")), [pinned("g", "4"), pinned("h", "5")]);
    let other = [("other", member(CpuClass::Shared, "4-7", 700))];
    let mut bench =
        Bench::new(two_small_nodes(), [].into_iter().chain(alone).chain(crowded).chain(also).chain(there).chain(other));
    bench.settings.far_dwell_ms = bench.settings.tick_ms;
    assert_eq!(bench.run(200), ["10 s: move across nodes c 0 to 6", "10 s: move across nodes e 1 to 7"]);
}
