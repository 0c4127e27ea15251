//! What fits on a GPU, what is refused, and how fast it decodes.

use super::*;

#[test]
fn what_a_gpu_cannot_do_is_refused() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().remove(0);
    let refusal = |options: LoadOptions| {
        let loaded = minisgl_engine::Engine::load(dir.path(), &options, &mut |_| ());
        loaded.err().expect("refused").to_string()
    };
    let too_many = 2 * minisgl_kernels::Device::count() as u32;
    let refused = refusal(LoadOptions { tp: too_many, ..on(Device::Cuda) });
    assert!(refused.contains(&format!("tp {too_many} needs {too_many} GPUs")), "{refused}");
    let kv_dtype = minisgl_proto::KvDtype::F32;
    let refused = refusal(LoadOptions { kv_dtype, ..on(Device::Cuda) });
    assert!(refused.contains("option kv_dtype is f32: auto, bf16, fp16 or fp8"), "{refused}");
    let refused = refusal(LoadOptions { kv_tokens: Some(1 << 40), ..on(Device::Cuda) });
    assert!(refused.contains("no memory for the KV cache"), "{refused}");
}

/// By ratio, a GPU's memory is filled with pages and nothing fails at the edge.
#[test]
fn pages_fill_the_share_of_memory_that_was_asked_for() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().remove(3);
    let options = LoadOptions { memory_ratio: Some(0.9), max_running: 1 << 12, ..on(Device::Cuda) };
    let (_engine, info) = minisgl_engine::Engine::load(dir.path(), &options, &mut |_| ()).unwrap();
    println!("{}: {} bytes of KV pages, {} tokens", info.device, info.kv_bytes, info.kv_tokens);
    assert_eq!(info.dtype, "bf16");
    assert!(info.kv_tokens >= 1 << 20);
}

/// Milliseconds of a decode step over dummy weights of real shapes, as they come from the driver.
#[test]
fn decode_speed() {
    let Some(shapes) = std::env::var_os("MINISGL_SHAPES_DIR").map(PathBuf::from) else { return };
    let Some(_gpu) = gpu() else { return };
    for shape in ["Qwen3-0.6B"] {
        let options = LoadOptions {
            dummy_weights: true,
            kv_tokens: Some(100_000),
            max_len: Some(4096),
            chunk_tokens: Some(8192),
            ..on(Device::Cuda)
        };
        let start = Instant::now();
        let (mut engine, info) = load(&shapes.join(shape), options);
        println!("{shape} on {}: loaded in {:.2} s", info.device, start.elapsed().as_secs_f64());
        let mut random = Random(1);
        let mut step = 0;
        for batch in [1, 32, 256] {
            let prompts: Vec<_> = (0..batch).map(|_| random.tokens(128, 10_000)).collect();
            let mut time = |new_tokens| {
                let drive = Drive { chunk: 8192, new_tokens, logprobs: None, ..Drive::default() };
                let start = Instant::now();
                generate(&mut engine, &info, &mut step, &prompts, &drive);
                start.elapsed().as_secs_f64()
            };
            time(4);
            let (short, long) = (time(1), time(129));
            let seconds = (long - short) / 128.0;
            println!(
                "{shape}, batch {batch}: prefill of {} tokens {:.2} ms, a decode step {:.3} ms, {:.0} tokens/s",
                batch * 128,
                short * 1e3,
                seconds * 1e3,
                batch as f64 / seconds
            );
        }
    }
}
