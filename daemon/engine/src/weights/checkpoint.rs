//! A model folder's safetensors files, single or sharded, verified as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::error::{PROBLEMS_MAX, Problem};
use super::file::MappedFile;
use super::tensor::{self, TensorPart};
use super::window::Window;
use super::{Part, TensorSpec, WeightError, WeightSource};
use crate::scheme::{Element, Scheme};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An index is not larger than this.
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// A checkpoint has no more files than this.
const SHARDS_MAX: usize = 4096;

/// Weights from memory-mapped files. Pages are read from disk when a part is read, belong to the page
/// cache, and leave this process's memory once they were read: there is no second copy in it.
pub(super) struct Checkpoint {
    files: Vec<MappedFile>,
    tensors: HashMap<String, Stored>,
}

/// Which file a tensor is in, and what the file says of it.
type Found = (usize, TensorInfo);

/// Where one tensor is.
struct Stored {
    file: usize,
    info: TensorInfo,
    /// As the model has it: scales may be written with fewer axes.
    shape: Vec<usize>,
    stored: tensor::Stored,
    scheme: Option<&'static str>,
}

/// How a tensor of `dtype` is read as `element`, if it can be.
fn stored_as(element: Element, dtype: Dtype) -> Option<tensor::Stored> {
    Some(match (element, dtype) {
        (Element::Float | Element::Scale, Dtype::BF16) => tensor::Stored::Bf16,
        (Element::Float | Element::Scale, Dtype::F16) => tensor::Stored::F16,
        (Element::Float | Element::Scale, Dtype::F32) => tensor::Stored::F32,
        (Element::E4m3, Dtype::F8_E4M3) | (Element::E2m1Pairs, Dtype::U8) => tensor::Stored::Byte,
        (Element::Scale, Dtype::F8_E8M0) | (Element::E8m0, Dtype::U8 | Dtype::F8_E8M0) => {
            tensor::Stored::E8m0
        }
        _ => return None,
    })
}

impl Checkpoint {
    /// Whether there is a file to begin with.
    pub(super) fn is_in(dir: &Path) -> bool {
        dir.join(SINGLE).exists() || dir.join(INDEX).exists()
    }

    /// Maps the files and checks that `wanted` is there, and nothing else.
    pub(super) fn open(dir: &Path, wanted: &[TensorSpec]) -> Result<Checkpoint, WeightError> {
        let mut found = BTreeMap::new();
        let mut misplaced = BTreeMap::new();
        let mut files = Vec::new();
        if dir.join(SINGLE).exists() {
            let file = MappedFile::open(&dir.join(SINGLE))?;
            let infos = file.tensors().into_iter();
            found.extend(infos.map(|(name, info)| (name, (0, info.clone()))));
            files.push(file);
        } else if dir.join(INDEX).exists() {
            let placed = read_index(dir)?;
            let shards: BTreeSet<&String> = placed.values().collect();
            refuse_missing(dir, &shards)?;
            for (at, shard) in shards.into_iter().enumerate() {
                let file = MappedFile::open(&dir.join(shard))?;
                let held: BTreeMap<_, _> = file.tensors().into_iter().collect();
                for (name, place) in &placed {
                    if place == shard && !held.contains_key(name) {
                        misplaced.insert(name.clone(), shard.clone());
                    }
                }
                for (name, info) in held {
                    // A tensor that the index places elsewhere is found there, or reported.
                    if placed.get(&name).is_none_or(|place| place == shard) {
                        found.insert(name, (at, info.clone()));
                    }
                }
                files.push(file);
            }
        } else {
            return Err(WeightError::NoWeights { dir: dir.to_owned(), hint: hint(dir) });
        }

        let (tensors, mut problems) = verify(wanted, found, misplaced);
        if problems.is_empty() {
            return Ok(Checkpoint { files, tensors });
        }
        let total = problems.len();
        problems.truncate(PROBLEMS_MAX);
        Err(WeightError::Mismatch { dir: dir.to_owned(), problems, total })
    }
}

/// Keeps what the model needs, and says what is missing, misshapen or unexpected. `misplaced` are
/// the tensors that an index places in a file that does not have them.
fn verify(
    wanted: &[TensorSpec],
    mut found: BTreeMap<String, Found>,
    mut misplaced: BTreeMap<String, String>,
) -> (HashMap<String, Stored>, Vec<Problem>) {
    let mut tensors = HashMap::new();
    let mut problems = Vec::new();
    for spec in wanted {
        let TensorSpec { name, shape, element, scheme, aliases } = spec.clone();
        let alias = aliases.into_iter().find(|alias| found.contains_key(alias));
        // What the file calls it is what the operator can look for.
        let place = alias.filter(|_| !found.contains_key(&name)).unwrap_or_else(|| name.clone());
        match (found.remove(&place), misplaced.remove(&place)) {
            (None, None) => problems.push(Problem::Missing { name, shape, scheme }),
            (None, Some(shard)) => problems.push(Problem::NotInShard { name, shard }),
            (Some((_, info)), _) if !spec.has_shape(&info.shape) => {
                let (name, found) = (place, info.shape);
                problems.push(Problem::Shape { name, found, expected: shape, scheme });
            }
            (Some((file, info)), _) => match stored_as(element, info.dtype) {
                Some(stored) => {
                    tensors.insert(name, Stored { file, info, shape, stored, scheme });
                }
                None => problems.push(Problem::Dtype {
                    name: place,
                    found: format!("{:?}", info.dtype),
                    supported: element.types(),
                    scheme,
                }),
            },
        }
    }
    // Old exports store the rotation frequencies, and some a head that is tied anyway.
    let quantised = wanted.iter().any(|spec| spec.scheme.is_some());
    let harmless = |name: &str| {
        name.ends_with(".rotary_emb.inv_freq")
            || name == "lm_head.weight"
            || quantised && Scheme::is_unused(name)
    };
    let unexpected = found
        .into_iter()
        .map(|(name, (_, info))| Problem::Unexpected { name, shape: info.shape })
        .chain(misplaced.into_iter().map(|(name, shard)| Problem::NotInShard { name, shard }));
    problems.extend(unexpected.filter(|problem| !harmless(problem.tensor())));
    (tensors, problems)
}

/// Tensor names and the files that the index places them in.
fn read_index(dir: &Path) -> Result<BTreeMap<String, String>, WeightError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = dir.join(INDEX);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(INDEX_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|source| WeightError::Read { path: path.clone(), source })?;
    let refuse = |reason: String| WeightError::Index { path: path.clone(), reason };
    if bytes.len() as u64 > INDEX_BYTES_MAX {
        return Err(refuse(format!("it is larger than {INDEX_BYTES_MAX} bytes")));
    }
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
    for (name, shard) in &index.weight_map {
        // A plain file name: a folder that was downloaded must not make us read outside of it.
        let mut parts = Path::new(shard).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain || !shard.ends_with(".safetensors") {
            return Err(refuse(format!(
                "it places {name} in {shard:?}, which is not the name of a .safetensors file in this folder"
            )));
        }
    }
    let shards = index.weight_map.values().collect::<BTreeSet<_>>().len();
    match shards {
        0 => Err(refuse("its weight_map is empty".to_owned())),
        1..=SHARDS_MAX => Ok(index.weight_map),
        _ => Err(refuse(format!("it names {shards} files, the limit is {SHARDS_MAX}"))),
    }
}

fn refuse_missing(dir: &Path, shards: &BTreeSet<&String>) -> Result<(), WeightError> {
    let missing: Vec<String> =
        shards.iter().filter(|shard| !dir.join(shard).exists()).map(|&name| name.clone()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(WeightError::MissingShards { dir: dir.to_owned(), shards: missing, total: shards.len() })
}

/// What to do about a folder without safetensors.
fn hint(dir: &Path) -> String {
    let mut others: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| [".bin", ".pth", ".pt", ".gguf"].iter().any(|end| name.ends_with(end)))
        .collect();
    others.sort_unstable();
    match others.first() {
        Some(first) => format!(", only {first}; convert the model to safetensors"),
        None => String::new(),
    }
}

impl WeightSource for Checkpoint {
    fn part(
        &self,
        name: &str,
        shape: &[usize],
        part: &Part,
    ) -> Result<TensorPart<'_>, WeightError> {
        let stored = self
            .tensors
            .get(name)
            .ok_or_else(|| WeightError::UnknownTensor { name: name.to_owned() })?;
        if stored.shape != shape {
            return Err(WeightError::WrongShape {
                name: name.to_owned(),
                found: stored.shape.clone(),
                asked: shape.to_vec(),
            });
        }
        let window = Window::new(name, shape, part)?;
        let file = &self.files[stored.file];
        Ok(TensorPart::mapped(window, file, file.bytes(&stored.info), stored.stored))
    }

    fn bytes_total(&self) -> u64 {
        let bytes = |stored: &Stored| stored.info.data_offsets.1 - stored.info.data_offsets.0;
        self.tensors.values().map(|stored| bytes(stored) as u64).sum()
    }

    fn dtype(&self) -> &'static str {
        let schemes: BTreeSet<&str> =
            self.tensors.values().filter_map(|stored| stored.scheme).collect();
        if let Some(scheme) = schemes.first() {
            return scheme;
        }
        let types: BTreeSet<&'static str> = self
            .tensors
            .values()
            .map(|stored| match stored.info.dtype {
                Dtype::BF16 => "bf16",
                Dtype::F16 => "fp16",
                _ => "fp32",
            })
            .collect();
        if types.len() == 1 { types.first().copied().unwrap_or("mixed") } else { "mixed" }
    }
}
