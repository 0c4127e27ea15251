//! The fence, held together: the C compiler's sizes and offsets of `cu/minisgl.h` against Rust's.

use std::mem::{offset_of, size_of};
use std::process::Command;

use minisgl_kernels::abi::*;

/// One line for each struct and field: "name offset", with the size as the offset of the struct.
struct Layout {
    /// C expressions for `printf`.
    c: String,
    rust: String,
}

macro_rules! fence {
    ($($rust:ident = $c:ident { $($field:ident),* $(,)? })*) => {{
        let mut layout = Layout { c: String::new(), rust: String::new() };
        $(
            layout.c += concat!("printf(\"", stringify!($c), " %zu\\n\", sizeof(", stringify!($c), "));\n");
            layout.rust += &format!("{} {}\n", stringify!($c), size_of::<$rust>());
            $(
                layout.c += concat!(
                    "printf(\"", stringify!($c), ".", stringify!($field), " %zu\\n\", offsetof(",
                    stringify!($c), ", ", stringify!($field), "));\n"
                );
                layout.rust += &format!(
                    "{}.{} {}\n", stringify!($c), stringify!($field), offset_of!($rust, $field)
                );
            )*
            // Naming every field makes a forgotten one a compile error.
            let _ = |of: $rust| { let $rust { $($field: _),* } = of; };
        )*
        layout
    }};
}

#[test]
fn rust_and_c_agree_on_every_size_and_offset() {
    let layout = fence! {
        EmbeddingArgs = minisgl_embedding_args {
            tokens, fed, table, out, rows, hidden, fed_len, vocab_start, vocab_len, scale,
        }
        CopyRunsArgs = minisgl_copy_runs_args { runs, from, to, from_len, to_len }
        BringArgs = minisgl_bring_args {
            words, to, pairs, table, words_len, pairs_len, table_len, reserved,
        }
        RmsNormArgs = minisgl_rmsnorm_args { x, index, weight, out, rows, x_rows, hidden, eps }
        AddNormArgs = minisgl_add_norm_args {
            x, after, residual, next, normed, rows, hidden, eps, plus_one,
        }
        QkRopePageArgs = minisgl_qk_rope_page_args {
            qkv, q_weight, k_weight, cos_sin, positions, slots, q_out, k_pages, v_pages, rows,
            q_heads, kv_heads, positions_len, slots_len, eps, q_fp16, reserved,
        }
        WidenHeadsArgs = minisgl_widen_heads_args { x, out, heads, from, to, reserved }
        GateMulArgs = minisgl_gate_mul_args { gate_up, out, rows, width, gate, reserved }
        SkinnyArgs = minisgl_skinny_args {
            x, norm_weight, weight, scales, bias, out, m, n, k, eps, epilogue, chunk, stages, resident,
            inbox, peers, scale_form, gate, reserved,
        }
        MediumArgs = minisgl_medium_args {
            map, x, scales, bias, out, m, n, k, epilogue, scale_form, stages, gate,
        }
        NarrowArgs = minisgl_narrow_args {
            map, x_map, x_scales, scales, bias, out, out_scales, m, n, k, epilogue, scale_form,
            stages, gate,
        }
        BroadArgs = minisgl_broad_args {
            map, x_map, x_scales, scales, bias, out, m, n, k, epilogue, scale_form, stages, gate,
        }
        QuantiseArgs = minisgl_quantise_args {
            x, norm_weight, out, scales, rows, hidden, scale_stride, scale_form, gated, eps,
            gate, plus_one,
        }
        DummyArgs = minisgl_dummy_args {
            out, key, first, rows, cols, width, scale, mean, reserved,
        }
        SampleParams = minisgl_sample_params {
            seed, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
            frequency_penalty, history, bias_at, bias_len, banned_at, banned_len, banned_below,
            reserved,
        }
        SampleRow = minisgl_sample_row { slot, position, out, logprobs, given, mask, }
        SampleArgs = minisgl_sample_args {
            logits, draws, params, masks, bias_tokens, bias_values, banned, marks, scratch, tokens,
            logprob, top_tokens, top_logprobs, rows, slots, vocab, stride, tables, masks_len,
            tokens_len, bias_len, banned_len, top_max, part, stagger,
        }
        HistoryResetArgs = minisgl_history_reset_args {
            tokens, marks, len, prompt_len, vocab, reserved,
        }
        DecodeArgs = minisgl_decode_args {
            q, q_weight, k_weight, cos_sin, k_pages, v_pages, out, work, pages, partials,
            arrived, q_heads, kv_heads, page_size, positions_len, stages, fused, eps, scale,
            sinks, window, plus_one, codes, scales, scale_stride, reserved,
        }
        PackArgs = minisgl_pack_args {
            from, to, row_stride, column_stride, rows, columns, rows_are, reserved,
        }
        RouterArgs = minisgl_router_args {
            x, norm_weight, weight, bias, correction, there, normed, logits, ids, weights, counts,
            plan, arrived, rows, hidden, experts, top, eps, scale, score, renormalise, batch,
            batches_max, logits_stride, choose_rows,
        }
        ExpertsFewArgs = minisgl_experts_few_args {
            x, gate_up, down, up_bias, down_bias, weights, ids, plan, act, out, arrived, up_scales,
            down_scales, rows, top, hidden, width, batches_max, gate, up_steps, down_steps, stages,
            stage_bytes, adds, up_form, down_form, reserved,
        }
        ExpertsManyArgs = minisgl_experts_many_args {
            x, weight, bias, plan, out, rows, top, n, columns, batches_max, batch, stages, gate,
        }
        GatherArgs = minisgl_gather_args { x, plan, to, rows, top, columns, batches_max }
        CombineArgs = minisgl_combine_args { y, weights, place, out, rows, top, hidden, adds }
        AddSharedArgs = minisgl_add_shared_args { x, gate, y, out, rows, hidden }
        Fp8GatherArgs = minisgl_fp8_gather_args {
            x, plan, to, scales, rows, top, columns, batches_max, scale_stride, by_places,
        }
        Fp8ManyArgs = minisgl_fp8_many_args {
            x, x_scales, weight, scales, bias, plan, out, rows, top, n, columns, batches_max,
            batch, stages, gate, scale_stride, reserved,
        }
        Mxfp4PackArgs = minisgl_mxfp4_pack_args {
            codes, scales, to, row_bytes, scales_stride, rows, columns, above, left, to_rows,
            to_columns, rows_are, in_parts,
        }
        Mxfp4FewArgs = minisgl_mxfp4_few_args {
            x, gate_up, down, up_bias, down_bias, weights, ids, plan, act, out, counts, rows, top,
            hidden, width, batches_max, gate, stages, stage_bytes, room_bytes, x_buffers, adds,
            reserved,
        }
        FiArgs = minisgl_fi_args {
            q, k_pages, v_pages, out, q_starts, page_starts, pages, last_page_len, float_workspace,
            int_workspace, requests, q_heads, kv_heads, kv_stride, page_size, scale, dependent,
            window_left, sinks,
        }
        FiPlanArgs = minisgl_fi_plan_args {
            q_starts, page_starts, float_workspace, int_workspace, pinned, float_bytes, int_bytes,
            rows, requests, q_heads, kv_heads, head_dim, page_size, kv_bytes, graph,
            window_left, reserved,
        }
        FaArgs = minisgl_fa_args {
            q, k_pages, v_pages, out, pages, work_starts, work, work_len, rows, q_heads, kv_heads,
            kv_stride, page_size, scale, tile, sinks, window_left, reserved,
        }
        PeerFault = minisgl_peer_fault { failed, missing, block, turn }
        PeersArgs = minisgl_peers { arrivals, turns, fault, patience_ns, rank, ranks }
        AllReduceArgs = minisgl_all_reduce_args {
            peers, delta, residual, norm_weight, normed, rows, hidden, eps, add,
        }
        PushArgs = minisgl_push_args { sum, inbox, inbox_rows, sent }
        MeetArgs = minisgl_meet_args { peers }
        GatherColumnsArgs = minisgl_gather_columns_args {
            part, start, parts, part_stride, out, rows, stride, vectors, reserved,
        }
        MailLine = minisgl_mail_line { low, low_turn, high, high_turn }
        Mail = minisgl_mail { number, token, list }
        SampleRanksArgs = minisgl_sample_ranks_args {
            sample, peers, part, mail, turns, whole, start, part_stride, whole_stride,
        }
    };
    let headers = [
        include_str!("../cu/minisgl.h"),
        include_str!("../cu/attention.h"),
        include_str!("../cu/experts.h"),
        include_str!("../cu/narrow.h"),
        include_str!("../cu/broad.h"),
        include_str!("../cu/peers.h"),
    ];
    let structs: usize = headers.map(|text| text.matches("typedef struct").count()).iter().sum();
    assert_eq!(structs, layout.rust.lines().filter(|line| !line.contains('.')).count());
    assert_eq!(size_of::<SampleRow>(), 6 * 4, "Pod allows no padding");

    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("layout.c"), dir.path().join("layout"));
    let c = format!(
        "#include \"minisgl.h\"\n#include \"peers.h\"\n#include \"experts.h\"\n#include \"narrow.h\"\n#include \"broad.h\"\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n{}return 0;\n}}\n",
        layout.c
    );
    std::fs::write(&source, c).unwrap();
    let include = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/cu");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = Command::new(compiler);
    command.args(["-std=c99", "-Wall", "-Wextra", "-Werror", include, "-o"]);
    let status = command.arg(&program).arg(&source).status().expect("a C compiler, `cc` or $CC");
    assert!(status.success());
    let said = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
    assert_eq!(said, layout.rust);
}
