//! Small trees, made here; those of real machines are read by tests/topologies.rs.

use super::*;

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn machine(files: &[(&str, &str)]) -> String {
    let files: Vec<(String, &str)> =
        files.iter().map(|(path, text)| (format!("sys/devices/system/{path}"), *text)).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    serde_json::to_string(&read(tree(&files).path(), None).unwrap()).unwrap()
}

#[test]
fn a_tree_of_threads_caches_and_nodes_is_read() {
    let mut files = vec![
        ("cpu/online", "0-3\n"),
        ("cpu/present", "0-5\n"),
        ("cpu/isolated", "3\n"),
        ("node/node0/cpulist", "0-3\n"),
        ("node/node1/cpulist", "\n"),
    ];
    for (cpu, core) in [("cpu/cpu0", "0,2"), ("cpu/cpu1", "1,3"), ("cpu/cpu2", "0,2"), ("cpu/cpu3", "1,3")] {
        for (file, text) in [
            ("topology/core_cpus_list", core),
            ("topology/core_siblings_list", "0-3"),
            ("topology/die_cpus_list", "0-3"),
            ("cache/index0/level", "1"),
            ("cache/index0/type", "Data"),
            ("cache/index0/shared_cpu_list", core),
            ("cache/index3/level", "3"),
            ("cache/index3/type", "Unified"),
            ("cache/index3/shared_cpu_list", "0-3"),
        ] {
            files.push((Box::leak(format!("{cpu}/{file}").into_boxed_str()), text));
        }
    }
    insta::assert_snapshot!(machine(&files), @r#"{"packages":["0-3"],"dies":[],"numa":{"0":"0-3","1":""},"llc":["0-3"],"cores":["0,2","1,3"],"online":"0-3","offline":"4-5","usable":"0-2","kinds":[]}"#);
}

#[test]
fn what_a_machine_does_not_tell_is_left_empty() {
    let topology = read(tree(&[("sys/devices/system/cpu/online", "0-1")]).path(), Some(&"0".parse().unwrap())).unwrap();
    assert_eq!(topology.usable.to_string(), "0");
    assert_eq!((topology.cores.len(), topology.llcs.len(), topology.kinds.len()), (0, 0, 0));
    assert_eq!(topology.nodes, [(0, "0-1".parse().unwrap())].into());
    let missing = read(Path::new("/nonexistent"), None).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read /nonexistent/sys/devices/system/cpu");
}

#[test]
fn what_the_first_cpu_alone_lacks_is_read_of_the_others() {
    let mut files = vec![("cpu/online", "\0\0"), ("cpu/cpu0/topology/core_id", "0")];
    for (cpu, core) in [("cpu/cpu1", "1"), ("cpu/cpu2", "2-3"), ("cpu/cpu3", "2-3")] {
        for (file, text) in [
            ("topology/core_cpus_list", core),
            ("topology/package_cpus_list", "0-3"),
            ("cache/index3/level", "3"),
            ("cache/index3/shared_cpu_list", core),
            ("cpu_capacity", if core == "1" { "512" } else { "1024" }),
        ] {
            files.push((Box::leak(format!("{cpu}/{file}").into_boxed_str()), text));
        }
    }
    insta::assert_snapshot!(machine(&files), @r#"{"packages":["0-3"],"dies":[],"numa":{"0":"0-3"},"llc":["1","2-3"],"cores":["1","2-3"],"online":"0-3","offline":"","usable":"0-3","kinds":[{"cpus":"1","efficiency":0,"infos":{"LinuxCapacity":512}},{"cpus":"2-3","efficiency":1,"infos":{"LinuxCapacity":1024}}]}"#);
}

#[test]
fn nonsense_is_no_group_and_no_group_claims_a_cpu_of_another() {
    // CPU 0 claims everybody, CPU 1 only itself, CPU 2 somebody else, CPU 3 has bytes that are no list.
    let shown = machine(&[
        ("cpu/online", "0-3"),
        ("cpu/cpu0/topology/package_cpus_list", "0,3"),
        ("cpu/cpu1/topology/package_cpus_list", "0-1"),
        ("cpu/cpu2/topology/package_cpus_list", "3"),
        ("cpu/cpu3/topology/package_cpus_list", "\0\0"),
        ("cpu/cpu2/cache/index0/level", "x"),
        ("node/node0/cpulist", "0-1"),
        ("node/node1/cpulist", "1-3"),
        ("node/nodes/cpulist", "1-3"),
    ]);
    insta::assert_snapshot!(shown, @r#"{"packages":["0,3","1"],"dies":[],"numa":{"0":"0-1"},"llc":[],"cores":[],"online":"0-3","offline":"","usable":"0-3","kinds":[]}"#);
}

#[test]
fn a_kernel_without_a_list_of_online_cpus_is_read_by_its_folders() {
    let shown = machine(&[
        ("cpu/cpu0/topology/thread_siblings", "00000000,00000005"),
        ("cpu/cpu1/online", "0"),
        ("cpu/cpu2/online", "1"),
        ("cpu/cpufreq/x", ""),
    ]);
    insta::assert_snapshot!(shown, @r#"{"packages":[],"dies":[],"numa":{"0":"0,2"},"llc":[],"cores":["0,2"],"online":"0,2","offline":"1","usable":"0,2","kinds":[]}"#);
}

#[test]
fn kinds_are_ranked_by_capacity_and_a_boosted_core_is_of_its_kind() {
    let mut files = vec![("cpu/online", "0-3")];
    for (cpu, [capacity, khz]) in ["cpu/cpu0", "cpu/cpu1", "cpu/cpu2", "cpu/cpu3"].into_iter().zip([
        ["1024", "5000000"],
        ["1024", "5200000"],
        ["500", "3900000"],
        ["500", "3900000"],
    ]) {
        files.push((Box::leak(format!("{cpu}/cpu_capacity").into_boxed_str()), capacity));
        files.push((Box::leak(format!("{cpu}/cpufreq/cpuinfo_max_freq").into_boxed_str()), khz));
    }
    let shown = machine(&files);
    let kinds = shown.split_once("\"kinds\":").unwrap().1;
    insta::assert_snapshot!(kinds, @r#"[{"cpus":"2-3","efficiency":0,"infos":{"LinuxCapacity":500,"FrequencyMaxMHz":3900}},{"cpus":"0-1","efficiency":1,"infos":{"LinuxCapacity":1024,"FrequencyMaxMHz":5000}}]}"#);
}

#[test]
fn the_effective_set_of_our_own_group_is_what_we_may_use() {
    let root = tree(&[
        (
            "proc/mounts",
            "none /sys/fs/cgroup/memory cgroup rw,memory 0 0\nnone /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\nnone /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
        ),
        ("proc/self/cgroup", "4:cpuset:/batch\n3:memory:/other\n0::/new\n"),
        ("sys/fs/cgroup/cpuset/batch/cpuset.cpus", "0-7\n"),
        ("sys/fs/cgroup/cpuset/batch/cpuset.effective_cpus", "0-3\n"),
    ]);
    assert_eq!(allowed(root.path()).unwrap().to_string(), "0-3");
    let newer = tree(&[
        ("proc/mounts", "none /sys/fs/cgroup cgroup2 rw 0 0\n"),
        ("proc/self/cgroup", "0::/new\n"),
        ("sys/fs/cgroup/new/cpuset.cpus.effective", "2-3\n"),
    ]);
    assert_eq!(allowed(newer.path()).unwrap().to_string(), "2-3");
    assert_eq!(allowed(Path::new("/nonexistent")), None);
}

#[test]
fn this_machine_can_be_read() {
    let topology = read(Path::new("/"), allowed(Path::new("/")).as_ref()).unwrap();
    assert!(!topology.usable.is_empty());
    for groups in [&topology.cores, &topology.packages, &topology.llcs] {
        assert!(groups.iter().all(|group| group.is_subset(&topology.online)));
    }
}

/// A line of groups, as many as there are.
fn shown(topology: &Topology) -> String {
    let lists = |sets: &[CpuSet]| sets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let nodes: Vec<String> = topology.nodes.iter().map(|(number, cpus)| format!("{number}:{cpus}")).collect();
    format!(
        "online {} off {} | nodes {} | packages {} | llcs {} | cores {}",
        topology.online,
        topology.offline,
        nodes.join(" "),
        lists(&topology.packages),
        lists(&topology.llcs),
        lists(&topology.cores)
    )
}

fn read_files(files: &[(String, String)]) -> Topology {
    let files: Vec<(String, &str)> =
        files.iter().map(|(path, text)| (format!("sys/devices/system/{path}"), text.as_str())).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    read(tree(&files).path(), None).unwrap()
}

#[test]
fn numbers_with_holes_nodes_of_memory_alone_and_cpus_that_are_off_are_read_as_they_are() {
    let mut files: Vec<(String, String)> = [
        ("cpu/online", "2,5,8"),
        ("cpu/present", "2,5,8,11"),
        ("node/node1/cpulist", "2,5"),
        ("node/node4/cpulist", "8,11"),
        ("node/node9/cpulist", ""),
    ]
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .into();
    // Whose CPU is off names it still, and one has no topology folder.
    files.push(("cpu/cpu2/topology/core_cpus_list".to_owned(), "2".to_owned()));
    files.push(("cpu/cpu8/topology/core_cpus_list".to_owned(), "8,11".to_owned()));
    assert_eq!(shown(&read_files(&files)), "online 2,5,8 off 11 | nodes 1:2,5 4:8 9: | packages  | llcs  | cores 2 8");
}

#[test]
fn hundreds_of_cpus_are_read_by_list_and_by_mask() {
    let mut files = vec![("cpu/online".to_owned(), "0-767".to_owned())];
    for node in 0..8u32 {
        let cpus: CpuSet = (node * 96..(node + 1) * 96).collect();
        // Half of the nodes as old kernels say it.
        let (file, text) = if node % 2 == 0 { ("cpulist", cpus.to_string()) } else { ("cpumap", cpus.to_mask()) };
        files.push((format!("node/node{node}/{file}"), text));
        for cpu in cpus.iter() {
            files.push((format!("cpu/cpu{cpu}/topology/package_cpus"), cpus.to_mask()));
        }
    }
    let topology = read_files(&files);
    assert_eq!((topology.online.len(), topology.nodes.len(), topology.packages.len()), (768, 8, 8));
    assert!(topology.nodes.values().zip(&topology.packages).all(|(node, package)| node == package));
}

proptest::proptest! {
    // Each is a tree of up to sixty files on a disk.
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_a_tree_says_groups_are_disjoint_and_online(
        online in proptest::collection::btree_set(0u32..40, 1..20),
        told in proptest::collection::vec((0u32..40, 0usize..6, "[0-9]{1,2}(-[0-9]{1,2})?(,[0-9]{1,2})?|[0-9a-f]{1,9}|\\PC{0,3}"), 0..60),
    ) {
        let online: CpuSet = online.into_iter().collect();
        let mut files: BTreeMap<String, String> = [("cpu/online".to_owned(), online.to_string())].into();
        for (number, which, text) in told {
            let file = [
                format!("cpu/cpu{number}/topology/core_cpus_list"),
                format!("cpu/cpu{number}/topology/package_cpus"),
                format!("cpu/cpu{number}/cache/index2/shared_cpu_list"),
                format!("cpu/cpu{number}/cache/index2/level"),
                format!("node/node{number}/cpulist"),
                format!("cpu/cpu{number}/cpu_capacity"),
            ];
            files.insert(file[which].clone(), text);
        }
        let topology = read_files(&files.into_iter().collect::<Vec<_>>());
        let nodes: Vec<CpuSet> = topology.nodes.values().cloned().collect();
        let kinds: Vec<CpuSet> = topology.kinds.iter().map(|kind| kind.cpus.clone()).collect();
        for groups in [&topology.cores, &topology.packages, &topology.llcs, &topology.dies, &nodes, &kinds] {
            let mut seen = CpuSet::new();
            for group in groups {
                proptest::prop_assert!(group.is_disjoint(&seen) && group.is_subset(&topology.online), "{}", shown(&topology));
                seen = seen.union(group);
            }
        }
    }
}
