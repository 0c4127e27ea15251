//! Models that are to be there again after a restart: `minisglctl load --persist`.
//!
//! One JSON file in the daemon's state folder, replaced as a whole, so that a crash leaves the old one or the new.
//! The operator's configuration is never written.
//!
//! Owns: the file. Must never: load a model.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use minisgl_proto::admin::LoadRequest;

use crate::checks::check_load;

/// Name of the file.
const FILE: &str = "models.json";
/// Bytes of the file, at most.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Saved models, at most; as many as can be loaded.
const MODELS_MAX: usize = 64;

/// The saved models.
#[derive(Debug)]
pub struct SavedModels {
    file: PathBuf,
    models: Mutex<Vec<LoadRequest>>,
}

impl SavedModels {
    /// Reads the models saved in `folder`; none where there is no file yet.
    ///
    /// # Errors
    /// Why the file is of no use, and what to do.
    pub fn open(folder: &Path) -> Result<SavedModels, String> {
        let file = folder.join(FILE);
        let at = file.display();
        if !folder.is_dir() {
            let folder = folder.display();
            return Err(format!("{folder} is no folder; make it with: mkdir -p {folder}"));
        }
        let models = match std::fs::metadata(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(format!("cannot look at {at}: {error}")),
            Ok(data) if data.len() > FILE_BYTES_MAX => {
                return Err(format!("{at} has more than {FILE_BYTES_MAX} bytes; remove it"));
            }
            Ok(_) => {
                let text = std::fs::read(&file).map_err(|e| format!("cannot read {at}: {e}"))?;
                serde_json::from_slice(&text)
                    .map_err(|e| format!("{at} makes no sense ({e}); repair or remove it"))?
            }
        };
        Ok(SavedModels { file, models: Mutex::new(models) })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<LoadRequest>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every saved model, in the order of their loading.
    pub fn models(&self) -> Vec<LoadRequest> {
        self.lock().clone()
    }

    /// Whether a model of this name is saved.
    pub fn has(&self, name: &str) -> bool {
        self.lock().iter().any(|request| is_of(request, name))
    }

    /// Saves a load, in place of an earlier one of the same name. Blocks until it is on disk.
    ///
    /// # Errors
    /// It is not: why.
    pub fn add(&self, request: &LoadRequest) -> Result<(), String> {
        let name = check_load(request).map_err(|error| error.message)?;
        self.change(|models| {
            models.retain(|other| !is_of(other, &name));
            models.push(request.clone());
        })
    }

    /// Forgets a model; whether it was saved. Blocks until it is on disk.
    ///
    /// # Errors
    /// It is saved, and stays so: why.
    pub fn remove(&self, name: &str) -> Result<bool, String> {
        if !self.has(name) {
            return Ok(false);
        }
        self.change(|models| models.retain(|other| !is_of(other, name))).map(|()| true)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<LoadRequest>)) -> Result<(), String> {
        let mut models = self.lock();
        let mut changed = models.clone();
        change(&mut changed);
        if changed.len() > MODELS_MAX {
            return Err(format!("{MODELS_MAX} models are saved, which is the limit"));
        }
        self.write(&changed).map_err(|e| format!("cannot write {}: {e}", self.file.display()))?;
        *models = changed;
        Ok(())
    }

    fn write(&self, models: &[LoadRequest]) -> std::io::Result<()> {
        let part = self.file.with_extension("json.new");
        let mut file = std::fs::File::create(&part)?;
        file.write_all(&serde_json::to_vec_pretty(models)?)?;
        file.sync_all()?;
        std::fs::rename(&part, &self.file)?;
        match self.file.parent() {
            Some(folder) => std::fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

fn is_of(request: &LoadRequest, name: &str) -> bool {
    check_load(request).is_ok_and(|own| own == name)
}

#[cfg(test)]
mod tests {
    use minisgl_proto::LoadOptions;

    use super::*;

    fn request(model: &str, name: Option<&str>) -> LoadRequest {
        let options = LoadOptions { kv_tokens: Some(64), ..LoadOptions::default() };
        LoadRequest {
            model: model.into(),
            name: name.map(str::to_owned),
            options,
            persist: true,
            aliases: vec![],
        }
    }

    #[test]
    fn what_is_saved_is_there_in_the_next_life_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let saved = SavedModels::open(dir.path()).unwrap();
        assert_eq!(saved.models(), []);
        saved.add(&request("/srv/a", None)).unwrap();
        saved.add(&request("org/b@main", Some("b"))).unwrap();
        saved.add(&request("/other/a", None)).unwrap(); // the name counts
        drop(saved);
        let saved = SavedModels::open(dir.path()).unwrap();
        assert_eq!(saved.models(), [request("org/b@main", Some("b")), request("/other/a", None)]);
        assert!(saved.has("a") && saved.has("b") && !saved.has("org/b"));
        assert_eq!(saved.remove("b"), Ok(true));
        assert_eq!(saved.remove("b"), Ok(false));
        let saved = SavedModels::open(dir.path()).unwrap();
        assert_eq!(saved.models(), [request("/other/a", None)]);
    }

    #[test]
    fn a_broken_file_is_named_and_a_failed_write_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "[{\"model\": 1}]").unwrap();
        let error = SavedModels::open(dir.path()).unwrap_err();
        assert!(
            error.contains("models.json makes no sense") && error.contains("remove"),
            "{error}"
        );
        let error = SavedModels::open(&dir.path().join("no")).unwrap_err();
        assert!(error.contains("mkdir -p"), "{error}");

        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        let saved = SavedModels::open(dir.path()).unwrap();
        drop(dir);
        assert!(saved.add(&request("/srv/a", None)).unwrap_err().contains("cannot write"));
        assert_eq!(saved.models(), []);
    }
}
