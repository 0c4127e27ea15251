//! Whether tests that want a GPU can run here; for tests of this workspace.
//!
//! Owns: `MINISGL_REQUIRE_GPU`, the number of GPUs without which they fail. Must never: be asked by anything else. Where
//! the variable is not set, a test that finds no GPU says so and claims nothing.

/// See the module's documentation.
pub const REQUIRE_GPU: &str = "MINISGL_REQUIRE_GPU";

/// Whether there is a GPU; without one it is said that a test is not run.
///
/// # Panics
/// If there are fewer GPUs than [`REQUIRE_GPU`] asks for, or that is no number.
#[cfg(feature = "cuda")]
pub fn has_gpu() -> bool {
    let wanted = std::env::var_os(REQUIRE_GPU).map(|wanted| wanted.to_string_lossy().into_owned());
    match is_there(crate::Device::count(), wanted.as_deref()) {
        Ok(true) => true,
        Ok(false) => {
            eprintln!("no CUDA device: not run");
            false
        }
        Err(why) => panic!("{why}"),
    }
}

/// Whether `count` GPUs are one at least, and as many as are `wanted`.
#[cfg_attr(not(any(feature = "cuda", test)), expect(dead_code, reason = "there are no GPU tests"))]
fn is_there(count: usize, wanted: Option<&str>) -> Result<bool, String> {
    let wanted = match wanted {
        None | Some("") => 0,
        Some(text) => text.parse::<usize>().map_err(|_| {
            format!("{REQUIRE_GPU} is {text:?}, expected how many GPUs there must be")
        })?,
    };
    if count < wanted {
        return Err(format!(
            "there are {count} GPUs that CUDA can use, {REQUIRE_GPU} wants {wanted}: see minisglctl doctor"
        ));
    }
    Ok(count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_without_its_gpu_fails_where_gpus_are_required() {
        assert_eq!(is_there(0, None), Ok(false));
        assert_eq!(is_there(0, Some("")), Ok(false));
        assert_eq!(is_there(0, Some("0")), Ok(false));
        for (count, wanted) in [(1, None), (1, Some("1")), (4, Some("2"))] {
            assert_eq!(is_there(count, wanted), Ok(true));
        }
        let missing = is_there(0, Some("1")).unwrap_err();
        assert!(missing.contains("0 GPUs") && missing.contains("MINISGL_REQUIRE_GPU"), "{missing}");
        assert!(is_there(1, Some("2")).is_err() && is_there(1, Some("yes")).is_err());
    }
}
