//! Ranks that work together: on as many GPUs as there are, or several ranks on one.

use std::process::Command;
use std::time::{Duration, Instant};

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::Device;
use minisgl_kernels::ops::{SkinnyGemm, SkinnyInput, SkinnyOut};
use minisgl_kernels::peers::{Allowed, NextNorm, PATIENCE, PeerShape, Peers, RANKS_MAX, Sum, Way};

use crate::support::{Gpu, Random, assert_close, assert_same};

/// Started so, the program does what must fail, and kills its GPU for itself.
pub const GIVE_UP: &str = "--rank-that-never-comes";

/// One device a rank, and how many rows they can sum without waiting for room on a GPU that they share.
pub struct Group {
    pub devices: Vec<Device>,
    rows_max: usize,
}

impl Group {
    pub fn of(ranks: usize) -> Group {
        let gpus = Device::count();
        let rows_max = if gpus >= ranks { 8192 } else { 100 / ranks };
        let devices = (0..ranks).map(|rank| Device::open(rank % gpus).unwrap()).collect();
        Group { devices, rows_max }
    }

    /// On GPUs of their own.
    pub fn apart(&self) -> bool {
        self.rows_max > 100
    }

    pub fn peers(&self, shape: &PeerShape) -> Vec<Peers> {
        let devices: Vec<&Device> = self.devices.iter().collect();
        Peers::open(&devices, shape.clone(), Allowed::All, PATIENCE).unwrap()
    }

    /// On a GPU that ranks share, a product that waits for its turn may hold what the other rank's needs.
    fn make_room(&self) {
        if !self.apart() {
            self.wait();
        }
    }

    pub fn wait(&self) {
        self.devices.iter().for_each(|device| device.synchronize().unwrap());
    }
}

fn upload(device: &Device, values: &[bf16]) -> CudaSlice<bf16> {
    device.stream().clone_htod(values).unwrap()
}

fn download(device: &Device, slice: &CudaSlice<bf16>) -> Vec<bf16> {
    device.stream().clone_dtoh(slice).unwrap()
}

fn normals(random: &mut Random, len: usize) -> Vec<bf16> {
    (0..len).map(|_| bf16::from_f32(random.normal())).collect()
}

fn shape(ranks: usize, hidden: usize, rows: usize) -> PeerShape {
    let columns = (0..ranks).map(|rank| 8 * rank..8 * rank + 8).collect();
    PeerShape { hidden, rows, logit_rows: 1, columns }
}

/// Sums of every way and number of ranks, one after the other without a pause: with the norm and without, added
/// and not.
pub fn all_reduce(gpu: &mut Gpu) {
    for ranks in [2, 3, 4, RANKS_MAX] {
        let group = Group::of(ranks);
        let hiddens: &[usize] =
            if gpu.small { &[264, 8200] } else { &[8, 576, 2560, 5120, 8200, 16_384] };
        for &hidden in hiddens {
            let most = group.rows_max.min((1 << 20) / hidden);
            let mut peers = group.peers(&shape(group.devices.len(), hidden, most));
            let mut ways = vec![Way::Push, Way::OneShot, Way::TwoShot];
            if group.apart() {
                ways.push(Way::Nccl);
            }
            for way in ways {
                peers.iter_mut().for_each(|peers| peers.only(way));
                for rows in [1, 2, 7, 33, most].map(|rows| rows.min(most)) {
                    sums(gpu, &group, &mut peers, rows, hidden, way);
                }
            }
        }
    }
}

/// Three sums in a row, the first of them an embedding; all ranks have the same bits after each.
fn sums(gpu: &mut Gpu, group: &Group, peers: &mut [Peers], rows: usize, hidden: usize, way: Way) {
    let (len, eps) = (rows * hidden, 1e-5);
    let what = format!("{} ranks, {way:?}, {rows} x {hidden}", peers.len());
    let weight = normals(&mut gpu.random, hidden);
    // What was there must not matter to an embedding.
    let before = vec![bf16::NAN; len];
    let mut residual: Vec<_> = group.devices.iter().map(|d| upload(d, &before)).collect();
    let mut normed: Vec<_> = group.devices.iter().map(|d| upload(d, &before)).collect();
    let weights: Vec<_> = group.devices.iter().map(|d| upload(d, &weight)).collect();
    let steps = [(Sum::Residual, true), (Sum::Addition, false), (Sum::Addition, true)];
    let parts: Vec<Vec<Vec<bf16>>> = (0..steps.len())
        .map(|_| peers.iter().map(|_| normals(&mut gpu.random, len)).collect())
        .collect();
    group.wait();
    for (&(sum, with_norm), parts) in steps.iter().zip(&parts) {
        for rank in 0..peers.len() {
            let device = &group.devices[rank];
            let mut delta = peers[rank].delta(sum).slice_mut(..len);
            device.stream().memcpy_htod(&parts[rank], &mut delta).unwrap();
        }
        let norms = weights.iter().zip(&mut normed).map(|(weight, out)| {
            with_norm.then(|| NextNorm { weight: weight.into(), out: out.into(), eps })
        });
        let all = peers.iter_mut().zip(&group.devices).zip(&mut residual).zip(norms);
        // NCCL wants each rank to come from a thread of its own.
        std::thread::scope(|scope| {
            for (((peers, device), residual), norm) in all {
                scope.spawn(move || {
                    peers.all_reduce(device, rows, (sum, false), residual.into(), norm).unwrap();
                });
            }
        });
    }
    group.wait();
    // Rounded after each sum, as the residual stream is.
    let mut expected = vec![bf16::ZERO; len];
    for parts in &parts {
        for (i, expected) in expected.iter_mut().enumerate() {
            let sum =
                parts.iter().map(|part| part[i].to_f32()).fold(expected.to_f32(), |a, b| a + b);
            *expected = bf16::from_f32(sum);
        }
    }
    for (rank, device) in group.devices.iter().enumerate() {
        let what = format!("{what}, rank {rank}");
        let got = download(device, &residual[rank]);
        if way == Way::Nccl {
            let wanted: Vec<f64> = expected.iter().map(|x| x.to_f64()).collect();
            // It rounds between ranks, to bf16 each time.
            let rounded = 0.12 + 0.5 * (peers.len() - 2) as f64;
            assert_close(&what, &got, &wanted, rounded);
        } else {
            assert_same(&what, &got, &expected);
        }
        let normed = download(device, &normed[rank]);
        for (row, (x, out)) in got.chunks(hidden).zip(normed.chunks(hidden)).enumerate() {
            let mean = x.iter().map(|x| x.to_f64() * x.to_f64()).sum::<f64>() / hidden as f64;
            let scale = 1.0 / (mean + f64::from(eps)).sqrt();
            let wanted: Vec<f64> =
                x.iter().zip(&weight).map(|(x, w)| x.to_f64() * scale * w.to_f64()).collect();
            assert_close(&format!("{what}, norm of row {row}"), out, &wanted, 1e-6);
        }
    }
}

/// Thousands of sums that nobody waits for between: a buffer that is written too early shows.
pub fn all_reduce_in_a_row(gpu: &mut Gpu) {
    let group = Group::of(2);
    let (hidden, turns) = (2048, if gpu.small { 50 } else { 3050 });
    // Some are pushed, some read.
    let most = group.rows_max.min(200);
    let mut peers = group.peers(&shape(group.devices.len(), hidden, most));
    let zeros = vec![bf16::ZERO; most * hidden];
    let mut residual: Vec<_> = group.devices.iter().map(|d| upload(d, &zeros)).collect();
    let ones = vec![bf16::from_f32(1.0); most * hidden];
    let parts: Vec<_> = group.devices.iter().map(|d| upload(d, &ones)).collect();
    group.wait();
    for turn in 0..turns {
        let rows = [1, most, 3, most / 2][turn % 4];
        for rank in 0..2 {
            let device = &group.devices[rank];
            let stream = device.stream().clone();
            let mut delta = peers[rank].delta(Sum::Addition).slice_mut(..rows * hidden);
            stream.memcpy_dtod(&parts[rank].slice(..rows * hidden), &mut delta).unwrap();
            let to = minisgl_kernels::ArrayMut::from(&mut residual[rank]).first(rows * hidden);
            peers[rank].all_reduce(device, rows, (Sum::Addition, false), to, None).unwrap();
            // Back to zero, so that sums stay exact.
            if turn % 100 == 99 {
                stream.memset_zeros(&mut residual[rank]).unwrap();
            }
        }
    }
    group.wait();
    let first = download(&group.devices[0], &residual[0]);
    assert_same("both ranks", &download(&group.devices[1], &residual[1]), &first);
    // Since the last reset: every turn adds 2 to the first row, and one in two to row 3.
    let since = turns % 100;
    assert_eq!(first[0].to_f32(), 2.0 * since as f32, "{turns} turns");
    assert!(peers.iter().all(|peers| peers.fault().read().is_none()));
}

/// Products that write to the peers themselves give what those do that leave it to the sum.
pub fn sent(gpu: &mut Gpu) {
    let group = Group::of(2);
    for (hidden, k) in [(64, 40), (2560, 512), (4096, if gpu.small { 256 } else { 6144 })] {
        let mut peers = group.peers(&shape(2, hidden, 16));
        for rows in [1, 2, 7, 16] {
            let len = rows * hidden;
            let x: Vec<_> = (0..2).map(|_| normals(&mut gpu.random, rows * k)).collect();
            let weight: Vec<_> = (0..2).map(|_| normals(&mut gpu.random, hidden * k)).collect();
            let all = group.devices.iter().enumerate();
            let inputs: Vec<_> =
                all.map(|(rank, d)| (upload(d, &x[rank]), upload(d, &weight[rank]))).collect();
            let before = normals(&mut gpu.random, len);
            let mut results = Vec::new();
            for send in [false, true] {
                let mut residual: Vec<_> =
                    group.devices.iter().map(|d| upload(d, &before)).collect();
                group.wait();
                // Twice, so that a place is used again that was emptied.
                for _ in 0..4 {
                    for (rank, (x, weight)) in inputs.iter().enumerate() {
                        let inboxes = peers[rank].inboxes(rows).unwrap();
                        let mut delta = peers[rank].delta(Sum::Addition).slice_mut(..len);
                        let out = match send {
                            true => {
                                SkinnyOut::Sent { out: (&mut delta).into(), bias: None, inboxes }
                            }
                            false => SkinnyOut::Bf16 { out: (&mut delta).into(), bias: None },
                        };
                        let (input, weight) = (SkinnyInput::Plain(x.into()), weight.into());
                        let product = SkinnyGemm { input, weight, out, m: rows, n: hidden, k };
                        product.launch(&group.devices[rank]).unwrap();
                    }
                    group.make_room();
                    let all = peers.iter_mut().zip(&group.devices).zip(&mut residual);
                    for ((peers, device), residual) in all {
                        let sum = (Sum::Addition, send);
                        peers.all_reduce(device, rows, sum, residual.into(), None).unwrap();
                    }
                    group.make_room();
                }
                group.wait();
                let of = |(d, r): (&Device, &CudaSlice<bf16>)| download(d, r);
                results.push(group.devices.iter().zip(&residual).map(of).collect::<Vec<_>>());
            }
            let what = format!("{rows} x {hidden}");
            assert_same(&what, &results[0][1], &results[0][0]);
            assert_same(&what, &results[1][0], &results[0][0]);
            assert_same(&what, &results[1][1], &results[0][0]);
        }
    }
}

/// Logits of uneven parts, joined by NCCL, which wants a GPU for each rank.
pub fn gather(gpu: &mut Gpu) {
    for ranks in [2, 3] {
        if ranks > Device::count() {
            println!("peers_gather: {ranks} ranks have {} GPUs", Device::count());
            continue;
        }
        let group = Group::of(ranks);
        for vocab in [24usize, 1003, if gpu.small { 4096 } else { 151_936 }] {
            // In whole eights and not.
            for unit in [8, 1] {
                let at = |rank: usize| (rank * vocab.div_ceil(unit) / ranks * unit).min(vocab);
                let columns: Vec<_> = (0..ranks).map(|rank| at(rank)..at(rank + 1)).collect();
                let rows = if gpu.small { 3 } else { 33 };
                let shape = PeerShape { hidden: 8, rows: 1, logit_rows: rows, columns };
                let devices: Vec<&Device> = group.devices.iter().collect();
                let mut peers =
                    Peers::open(&devices, shape.clone(), Allowed::NcclOnly, PATIENCE).unwrap();
                let stride = vocab.next_multiple_of(8);
                for rows in [rows, 1] {
                    let value = |row: usize, column: usize| (row * vocab + column) as f32;
                    let mut outs = Vec::new();
                    for (rank, columns) in shape.columns.iter().enumerate() {
                        let part_stride = shape.part_stride(rank);
                        let mut part = vec![-1.0f32; rows * part_stride];
                        for row in 0..rows {
                            for column in columns.clone() {
                                part[row * part_stride + column - columns.start] =
                                    value(row, column);
                            }
                        }
                        let stream = group.devices[rank].stream();
                        let mut to = peers[rank].logits().slice_mut(..part.len());
                        stream.memcpy_htod(&part, &mut to).unwrap();
                        outs.push(stream.clone_htod(&vec![f32::NAN; rows * stride]).unwrap());
                    }
                    group.wait();
                    std::thread::scope(|scope| {
                        let all = peers.iter_mut().zip(&group.devices).zip(&mut outs);
                        for ((peers, device), out) in all {
                            scope.spawn(move || {
                                peers.gather(device, rows, stride, out.into()).unwrap();
                            });
                        }
                    });
                    group.wait();
                    for (rank, out) in outs.iter().enumerate() {
                        let out = group.devices[rank].stream().clone_dtoh(out).unwrap();
                        for (row, got) in out.chunks(stride).enumerate() {
                            let wanted = (0..vocab).map(|column| value(row, column));
                            assert!(
                                got.iter().copied().zip(wanted).all(|(a, b)| a == b),
                                "{vocab}, {unit}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// A rank that never comes is named, in time, by a GPU that gives up.
pub fn gives_up(_gpu: &mut Gpu) {
    let began = Instant::now();
    let output = Command::new(std::env::current_exe().unwrap()).arg(GIVE_UP).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("missing: Some(Missing { rank: 1,"), "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// What [`gives_up`] starts.
pub fn give_up() {
    let group = Group::of(2);
    let devices: Vec<&Device> = group.devices.iter().collect();
    let patience = Duration::from_millis(300);
    let mut peers = Peers::open(&devices, shape(2, 64, 2), Allowed::All, patience).unwrap();
    let mut residual = upload(&group.devices[0], &[bf16::ZERO; 128]);
    let began = Instant::now();
    peers[0]
        .all_reduce(&group.devices[0], 2, (Sum::Addition, false), (&mut residual).into(), None)
        .unwrap();
    let waited = group.devices[0].synchronize();
    assert!(waited.is_err(), "nobody came");
    println!("missing: {:?} after {:?}", peers[0].fault().read(), began.elapsed());
    std::process::exit(0); // Nothing can be freed on a GPU that has failed.
}

/// Times of sums by size and way, on GPUs of their own.
pub fn bench(_gpu: &mut Gpu) {
    let ranks = Device::count().min(RANKS_MAX);
    if ranks < 2 {
        println!("all_reduce: one GPU, nothing to time");
        return;
    }
    let hidden = 4096;
    let group = Group::of(ranks);
    let mut peers = group.peers(&shape(ranks, hidden, 8192));
    println!(
        "{:<10} {:>6} {:>10} {:>10} {:>12}",
        "all_reduce", "rows", "KiB", "time/us", "bus GB/s"
    );
    for way in [Way::Push, Way::OneShot, Way::TwoShot, Way::Nccl] {
        for rows in [1usize, 4, 16, 32, 64, 128, 256, 1024, 4096, 8192] {
            if way == Way::Push && rows > 128 {
                continue;
            }
            peers.iter_mut().for_each(|peers| peers.only(way));
            let mut times: Vec<f64> =
                (0..5).map(|_| time(&group, &mut peers, rows, hidden)).collect();
            times.sort_by(f64::total_cmp);
            let (seconds, bytes) = (times[2], (rows * hidden * 2) as f64);
            // As nccl-tests count it: what each GPU must send.
            let bus = bytes * 2.0 * (ranks - 1) as f64 / ranks as f64 / seconds;
            println!(
                "{:<10} {rows:>6} {:>10.0} {:>10.2} {:>12.1}",
                format!("{way:?}"),
                bytes / 1024.0,
                seconds * 1e6,
                bus / 1e9
            );
        }
    }
}

/// Seconds of one sum among many.
fn time(group: &Group, peers: &mut [Peers], rows: usize, hidden: usize) -> f64 {
    let turns = 50;
    let zeros = vec![bf16::ZERO; rows * hidden];
    let mut residual: Vec<_> = group.devices.iter().map(|d| upload(d, &zeros)).collect();
    let mut normed: Vec<_> = group.devices.iter().map(|d| upload(d, &zeros)).collect();
    let weights: Vec<_> = group.devices.iter().map(|d| upload(d, &zeros[..hidden])).collect();
    group.wait();
    let seconds = std::thread::scope(|scope| {
        let all = peers
            .iter_mut()
            .zip(&group.devices)
            .zip(&mut residual)
            .zip(weights.iter().zip(&mut normed));
        let threads: Vec<_> = all
            .map(|(((peers, device), residual), (weight, normed))| {
                scope.spawn(move || {
                    let flags = cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
                    let context = device.stream().context().clone();
                    let event = || context.new_event(Some(flags)).unwrap();
                    let (began, ended) = (event(), event());
                    for turn in 0..turns + 10 {
                        if turn == 10 {
                            began.record(device.stream()).unwrap();
                        }
                        let norm = NextNorm {
                            weight: weight.into(),
                            out: (&mut *normed).into(),
                            eps: 1e-6,
                        };
                        let to = (&mut *residual).into();
                        peers
                            .all_reduce(device, rows, (Sum::Addition, false), to, Some(norm))
                            .unwrap();
                    }
                    ended.record(device.stream()).unwrap();
                    f64::from(began.elapsed_ms(&ended).unwrap()) / 1e3 / f64::from(turns)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(0.0, f64::max)
    });
    group.wait();
    seconds
}
