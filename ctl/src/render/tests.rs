//! What people see, as text that `UPDATE_EXPECT=1 cargo test` rewrites.

use expect_test::{Expect, expect};
use minisgl_proto::admin::{RequestState, RequestStatus};
use minisgl_proto::disk::{DiskRepo, DiskReport, DiskRevision, Fit, FitReport, SchemeShare};
use minisgl_proto::{LoadOptions, ModelInfo};

use super::*;

fn ready() -> ModelStatus {
    ModelStatus {
        name: "org/small".into(),
        source: "org/small".into(),
        state: ModelState::Ready,
        reason: None,
        pid: Some(4711),
        gpus: Vec::new(),
        gpu_memory_bytes: None,
        restarts: 1,
        state_s: 3723.0,
        in_flight: 3,
        progress: None,
        info: Some(ModelInfo {
            name: "org/small".into(),
            dir: "/models/small".into(),
            architecture: "LlamaForCausalLM".into(),
            device: "cpu".into(),
            dtype: "f32".into(),
            parameters: 134_515_008,
            weight_bytes: 538_060_032,
            kv_dtype: "f32".into(),
            kv_bytes: 1 << 30,
            kv_tokens: 8192,
            page_size: 16,
            kv_groups: 1,
            vocab_size: 49_152,
            max_len: 2048,
            context_len: 2048,
            max_running: 256,
            max_waiting: 1024,
            chunk_tokens: 512,
            eos_token_ids: vec![2],
            tp: 3,
            gpus: Vec::new(),
            read_bytes: 269_030_016,
            read_s: 0.5,
            load_s: 1.25,
        }),
        stats: Some(StepStats {
            steps: 100,
            running: 2,
            waiting: 1,
            pages_total: 512,
            pages_free: 128,
            pages_cached: 256,
            pages_evictable: 192,
            pages_owned: 128,
            prompt_tokens: 4000,
            cached_tokens: 1000,
            generated_tokens: 900,
            preemptions: 1,
            ..StepStats::default()
        }),
        options: LoadOptions::default(),
        persisted: false,
        aliases: Vec::new(),
        origin: minisgl_proto::admin::Origin::Loaded,
        retry_in_s: None,
        dialect: Some("hermes".into()),
        notes: Vec::new(),
    }
}

fn loading() -> ModelStatus {
    ModelStatus {
        name: "big".into(),
        source: "/models/big".into(),
        state: ModelState::Loading,
        pid: None,
        restarts: 0,
        state_s: 2.5,
        in_flight: 0,
        progress: Some(LoadProgress {
            stage: LoadStage::Read,
            done: 3 << 30,
            total: 61 << 30,
            detail: "model-00002.safetensors".into(),
        }),
        info: None,
        stats: None,
        ..ready()
    }
}

fn check(text: &str, expected: Expect) {
    expected.assert_eq(text);
}

#[test]
fn processes() {
    let dead = ModelStatus {
        state: ModelState::Restarting,
        reason: Some("the worker was killed by signal 9 (SIGKILL)".into()),
        stats: None,
        ..ready()
    };
    check(
        &ps(&[ready(), loading(), dead]),
        expect![[r#"
            NAME       STATE       FOR    DEVICE  TP  RUN/WAIT  KV   CACHE  HITS  RESTARTS  REASON
            org/small  ready       1h02m  cpu     3   2/1       38%  38%    25%   1
            big        loading     2.5s   -       1   -         -    -      -     0         read weights 3.0 GiB of 61.0 GiB (model-00002.safetensors)
            org/small  restarting  1h02m  cpu     3   -         -    -      -     1         the worker was killed by signal 9 (SIGKILL)
        "#]],
    );
}

#[test]
fn processes_that_are_loaded_at_start() {
    let persisted = ModelStatus { persisted: true, ..ready() };
    check(
        &ps(&[persisted.clone(), loading()]),
        expect![[r#"
            NAME       STATE    FOR    DEVICE  TP  RUN/WAIT  KV   CACHE  HITS  RESTARTS  PERSIST  REASON
            org/small  ready    1h02m  cpu     3   2/1       38%  38%    25%   1         yes
            big        loading  2.5s   -       1   -         -    -      -     0         -        read weights 3.0 GiB of 61.0 GiB (model-00002.safetensors)
        "#]],
    );
    let line =
        show(&persisted).lines().find(|line| line.starts_with("at start")).map(str::to_owned);
    assert_eq!(line.as_deref(), Some("at start      loaded again, until it is unloaded"));
    assert!(!show(&ready()).contains("at start"));
}

#[test]
fn processes_on_gpus() {
    let on = |name: &str, gpus: &[u32], gpu_memory_bytes| ModelStatus {
        name: name.into(),
        gpus: gpus.to_vec(),
        gpu_memory_bytes,
        ..ready()
    };
    let models = [on("a", &[0, 1], Some(150_323_855_360)), on("b", &[3], None), ready()];
    check(
        &ps(&models),
        expect![[r#"
            NAME       STATE  FOR    DEVICE  TP  GPUS  GPU MEM    RUN/WAIT  KV   CACHE  HITS  RESTARTS  REASON
            a          ready  1h02m  cpu     3   0,1   140.0 GiB  2/1       38%  38%    25%   1
            b          ready  1h02m  cpu     3   3     -          2/1       38%  38%    25%   1
            org/small  ready  1h02m  cpu     3   -     -          2/1       38%  38%    25%   1
        "#]],
    );
    let line = |model: &ModelStatus| {
        show(model).lines().find(|line| line.starts_with("GPUs")).map(str::to_string)
    };
    assert_eq!(line(&models[0]).as_deref(), Some("GPUs          0,1, 140.0 GiB held"));
    assert_eq!(line(&models[1]).as_deref(), Some("GPUs          3"));
    assert_eq!(line(&models[2]), None);
}

#[test]
fn one_model() {
    check(
        &show(&ready()),
        expect![[r#"
            name          org/small
            source        org/small
            state         ready for 1h02m
            worker        process 4711
            restarts      1
            in flight     3 requests
            folder        /models/small
            architecture  LlamaForCausalLM
            dialect       hermes
            parameters    134.5M in f32, 513.1 MiB
            device        cpu, 3 ranks
            KV cache      8192 tokens in 512 pages of 16, 1.0 GiB in f32
            context       2048 tokens
            limits        256 running, 1024 waiting, 512 tokens a step
            loaded in     1.2s, 256.6 MiB of weights in 0.5s (0.5 GB/s)
            requests      2 running, 1 waiting
            pages         192 in use, 192 cached beside them, 128 free
            tokens        4000 prompt, 1000 of them cached (25%), 900 generated
            steps         100, 1 preemption
        "#]],
    );
    let mut windows = ready();
    windows.info.as_mut().unwrap().kv_groups = 4;
    let line = "8192 tokens in 512 pages of 16 for each of 4 groups of layers, 1.0 GiB in f32";
    assert!(show(&windows).contains(line), "{}", show(&windows));
    windows.info.as_mut().unwrap().context_len = 4096;
    let line = "context       2048 tokens: as many as the KV cache has room for, of 4096";
    assert!(show(&windows).contains(line), "{}", show(&windows));
    check(
        &show(&loading()),
        expect![[r#"
        name       big
        source     /models/big
        state      loading for 2.5s
        progress   read weights 3.0 GiB of 61.0 GiB (model-00002.safetensors)
        worker     -
        restarts   0
        in flight  0 requests
    "#]],
    );
}

#[test]
fn numbers() {
    let sizes = [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 40, u64::MAX].map(bytes);
    check(
        &sizes.join(", "),
        expect!["0 B, 1023 B, 1.0 KiB, 1.5 KiB, 1.0 MiB, 1.0 TiB, 16777216.0 TiB"],
    );
    let counts = [0, 999, 1000, 134_515_008, 32_000_000_000].map(count);
    check(&counts.join(", "), expect!["0, 999, 1.0K, 134.5M, 32.0B"]);
    let times = [0.0, 9.94, 59.9, 60.0, 3599.0, 86_399.0, 90_000.0].map(seconds);
    check(&times.join(", "), expect!["0.0s, 9.9s, 59s, 1m00s, 59m59s, 23h59m, 1d01h"]);
}

#[test]
fn nothing_of_a_model_breaks_out_of_its_cell() {
    let evil = "\x1b[2Jgone\r\nNAME  ready\u{9b}1m";
    let model = ModelStatus {
        name: evil.into(),
        reason: Some(evil.into()),
        progress: Some(LoadProgress { detail: evil.into(), ..loading().progress.unwrap() }),
        notes: vec![evil.into()],
        ..loading()
    };
    assert_eq!(ps(std::slice::from_ref(&model)).lines().count(), 2);
    let shown = show(&model);
    let forged = |line: &str| line.starts_with("NAME");
    assert!(!shown.lines().any(forged), "{shown}");
}

#[test]
fn requests_that_run() {
    let request = |id, state, age_s| RequestStatus {
        id,
        request_id: format!("req-{id}"),
        model: "org/small".into(),
        key: None,
        state,
        prompt_tokens: 120,
        generated_tokens: 7,
        max_tokens: 256,
        priority: 0,
        age_s,
        moves: 0,
    };
    let mut all = [request(7, RequestState::Running, 1.5), request(3, RequestState::Parked, 90.0)];
    check(
        &requests(&all[..1]),
        expect![[r#"
        ID  MODEL      STATE    FOR   PROMPT  GENERATED  PRIORITY  REQUEST ID
        7   org/small  running  1.5s  120     7/256      0         req-7
    "#]],
    );
    all[1].key = Some("ci".into());
    all[1].moves = 1;
    check(
        &requests(&all),
        expect![[r#"
        ID  MODEL      STATE    FOR    PROMPT  GENERATED  PRIORITY  KEY  MOVES  REQUEST ID
        3   org/small  parked   1m30s  120     7/256      0         ci   1      req-3
        7   org/small  running  1.5s   120     7/256      0         -    0      req-7
    "#]],
    );
}

#[test]
fn models_on_disk() {
    let revision = |commit: &str, refs: &[&str], missing: &[&str]| DiskRevision {
        commit: commit.into(),
        refs: refs.iter().map(|name| (*name).into()).collect(),
        bytes: 3 << 30,
        files: 9,
        missing: missing.iter().map(|name| (*name).into()).collect(),
    };
    let repo = |id: &str, revisions: Vec<DiskRevision>| DiskRepo {
        id: id.into(),
        bytes: 6 << 30,
        incomplete_bytes: 0,
        last_used: Some(1_000.0),
        in_use: Vec::new(),
        downloading: false,
        revisions,
    };
    let mut report = DiskReport {
        cache: Some("/cache".into()),
        bytes: 12 << 30,
        free_bytes: Some(1 << 40),
        repos: vec![
            repo(
                "org/a",
                vec![
                    revision("0123456789abcdef", &["main"], &[]),
                    revision("fedcba9876543210", &[], &["config.json is missing"]),
                ],
            ),
            repo("org/b", vec![]),
        ],
        notes: Vec::new(),
    };
    report.repos[0].in_use = vec!["a".into(), "a-too".into()];
    report.repos[1].incomplete_bytes = 1 << 20;
    report.repos[1].downloading = true;
    check(
        &models(&report, 1_000.0 + 7200.0),
        expect![[r#"
        MODEL  REVISION      SIZE     LAST USED  USED BY  STATE
        org/a  main          3.0 GiB  2h00m ago  a,a-too  complete
        org/a  fedcba987654  3.0 GiB  2h00m ago  a,a-too  not complete: config.json is missing
        org/b  -             1.0 MiB  -          -        being downloaded
        12.0 GiB in 2 models of /cache, 1.0 TiB free
    "#]],
    );
}

#[test]
fn what_would_fit() {
    let mut report = FitReport {
        name: "org/small".into(),
        fits: true,
        problem: None,
        fit: Some(Fit {
            architecture: "LlamaForCausalLM".into(),
            parameters: 8_030_261_248,
            schemes: vec![
                SchemeShare { scheme: "fp8".into(), bytes: 14 << 30 },
                SchemeShare { scheme: "plain".into(), bytes: 2 << 30 },
            ],
            device: "2 x NVIDIA H200".into(),
            gpus: vec![0, 1],
            tp: 2,
            available_bytes: 140 << 30,
            weight_bytes: 8 << 30,
            other_bytes: 1 << 30,
            is_estimate: true,
            kv_bytes: 100 << 30,
            kv_tokens: 1_638_400,
            max_len: 131_072,
            kv_groups: 1,
            full_requests: 12,
        }),
        notes: vec!["the weights would be downloaded first".into()],
    };
    check(
        &fit(&report),
        expect![[r#"
        model         org/small
        verdict       fits
        architecture  LlamaForCausalLM, 8.0B parameters
        stored as     14.0 GiB in fp8, 2.0 GiB in 16 bits
        device        2 x NVIDIA H200, 2 ranks
        GPUs          0,1
        free memory   140.0 GiB on each GPU
        weights       about 8.0 GiB on each GPU
        workspaces    about 1.0 GiB on each GPU
        KV cache      about 1638400 tokens, 100.0 GiB on each GPU
        context       131072 tokens; 12 requests of that length fit at once
        note          the weights would be downloaded first
    "#]],
    );
    report.fit.as_mut().unwrap().kv_groups = 3;
    let line = "about 1638400 tokens in 3 groups of layers, 100.0 GiB on each GPU";
    assert!(fit(&report).contains(line), "{}", fit(&report));
    report.fits = false;
    report.fit = None;
    check(
        &fit(&report),
        expect![[r#"
        model    org/small
        verdict  does not fit
        note     the weights would be downloaded first
    "#]],
    );
}
