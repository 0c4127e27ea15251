//! Outputs as models write them, valid and broken, a file a dialect.

use crate::support::Case;

/// Names a module a dialect, and lists the cases of all.
macro_rules! dialects {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// The cases of every dialect, by its name.
        pub const ALL: &[(&str, &[Case])] = &[$((stringify!($name), $name::CASES)),*];
    };
}

dialects!(
    command,
    deepseek_v3,
    deepseek_v31,
    gemma3,
    gemma4,
    glm,
    gpt_oss,
    granite,
    hermes,
    kimi_k2,
    llama,
    minimax_m2,
    mistral,
    nemotron,
    phi4,
    plain,
    qwen3_coder,
    smollm3,
    think,
);
