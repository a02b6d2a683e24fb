//! GPU placement where devices are not all alike.

use super::*;
use crate::model::time::Timestamp;
use crate::model::topology::tests::flat;
use crate::place::place;
use crate::place::tests::{machine, place_all, spec};

#[test]
fn devices_that_are_not_well_or_that_strangers_use_get_nothing_new() {
    let mut machine = machine(flat(4));
    let at = Timestamp(0);
    machine.gpus[0].health = Health::Suspect { since: at, why: "Xid 79".to_owned() };
    machine.gpus[1].foreign = Bytes(6 << 30);
    let workloads =
        [("whole", "gpu: true"), ("share", "gpu: {memory: 10Gi}"), ("more", "gpu: {memory: 1Gi}"), ("all", "gpu: 2")];
    insta::assert_snapshot!(place_all(&machine, &workloads).1, @"
    whole: 0-3 GPU-2 (whole) (no cpu.limit: all shared CPUs)
    share: 0-3 GPU-1 (10Gi) (no cpu.limit: all shared CPUs)
    more: GpuBusy: 1Gi on 1 GPU asked for, 0 of 3 suitable are free now; held by share, whole; GPU-0 is suspect: Xid 79; others use 6Gi of GPU-1; stop share
    all: GpuBusy: 2 whole GPUs asked for, 0 of 3 suitable are free now; held by share, whole; GPU-0 is suspect: Xid 79; others use 6Gi of GPU-1
    ");
    // On probation is well enough, after all others; and a thirty-second part is what drivers keep.
    machine.gpus[0].health = Health::Probation { since: at };
    machine.gpus[1].foreign = Bytes(512 << 20);
    insta::assert_snapshot!(place_all(&machine, &[("a", "gpu: true"), ("b", "gpu: true"), ("c", "gpu: true")]).1, @"
    a: 0-3 GPU-1 (whole) (no cpu.limit: all shared CPUs)
    b: 0-3 GPU-2 (whole) (no cpu.limit: all shared CPUs)
    c: 0-3 GPU-0 (whole) (no cpu.limit: all shared CPUs)
    ");
}

#[test]
fn an_earlier_device_is_left_once_it_is_not_well() {
    let mut machine = machine(flat(4));
    let spec = spec("web", "gpu: true");
    let ledger = Ledger::of(&machine.topology);
    let grant = place(&machine, &ledger, &Ask::of(&spec, None)).unwrap();
    let again =
        |machine: &Machine| place(machine, &ledger, &Ask::of(&spec, Some(&grant))).unwrap().gpus[0].gpu.0.clone();
    assert_eq!(again(&machine), "GPU-0");
    machine.gpus[0].health = Health::Draining { since: Timestamp(0), why: String::new() };
    assert_eq!(again(&machine), "GPU-1");
}

#[test]
fn several_devices_are_close_to_each_other_and_of_one_maker() {
    let device = |index: u32, vendor, node, bus: &[&str]| {
        let mut gpu = Gpu::new(GpuId(format!("GPU-{index}")), vendor, "x", Bytes(16 << 30));
        gpu.node = Some(node);
        gpu.bus = bus.iter().map(|part| (*part).to_owned()).collect();
        gpu
    };
    let (amd, nvidia) = (Vendor::Amd, Vendor::Nvidia);
    let mut machine = machine(flat(4));
    machine.gpus = vec![
        device(0, nvidia, 0, &["pci0000:00", "0000:01:00.0"]),
        device(1, amd, 0, &["pci0000:00", "0000:02:00.0"]),
        device(2, nvidia, 1, &["pci0000:80", "0000:81:00.0", "0000:83:00.0"]),
        device(3, nvidia, 1, &["pci0000:90", "0000:91:00.0", "0000:93:00.0"]),
        device(4, nvidia, 1, &["pci0000:90", "0000:91:00.0", "0000:94:00.0"]),
    ];
    let chosen = |machine: &Machine, fields: &str| {
        let grant = place(machine, &Ledger::of(&machine.topology), &Ask::of(&spec("a", fields), None))
            .map_err(|refusal| refusal.reason)?;
        Ok::<_, &str>(grant.gpus.iter().map(|lease| lease.gpu.0.clone()).collect::<Vec<_>>().join(" "))
    };
    // Behind one switch; then that and the same node.
    assert_eq!(chosen(&machine, "gpu: 2").unwrap(), "GPU-3 GPU-4");
    assert_eq!(chosen(&machine, "gpu: 3").unwrap(), "GPU-2 GPU-3 GPU-4");
    assert_eq!(chosen(&machine, "gpu: 4").unwrap(), "GPU-0 GPU-2 GPU-3 GPU-4");
    assert_eq!(chosen(&machine, "gpu: 5"), Err("GpuBusy"));
    // NVLink is closer than any switch.
    machine.gpus[0].links = [GpuId("GPU-2".to_owned())].into();
    machine.gpus[2].links = [GpuId("GPU-0".to_owned())].into();
    assert_eq!(chosen(&machine, "gpu: 2").unwrap(), "GPU-0 GPU-2");
}
