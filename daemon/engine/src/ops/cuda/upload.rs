//! Weights on their way to the GPU: read out of mapped files straight into pinned memory, and copied from
//! there, by several readers at once. Dummy weights are made on the GPU.
//!
//! Owns: the pinned stagings, two for each reader, so that one is filled while the other is copied. Must
//! never: hold a whole tensor on the host, or outlive loading.
//!
//! ```text
//!   reader 0   fill A | fill B | wait for A's copy, fill A | ...      each fill: the next 4 MiB of the
//!   reader 1     fill A | fill B | ...                                tensor that nobody has taken
//!   stream          copy A0 | copy A1 | copy B0 | ...
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, CudaViewMut, DevicePtrMut, DeviceRepr,
    DriverError, result,
};
use cudarc::driver::{PinnedHostSlice, sys::CUdeviceptr};
use half::bf16;
use minisgl_kernels::Device;
use minisgl_kernels::ops::{DummyCode, DummyCodes, DummyFill};

use super::failed;
use crate::ops::OpResult;
use crate::scheme::Code;
use crate::weights::{DummyCodePart, DummyPart, TensorPart};

/// Bytes of a staging.
const STAGING_BYTES: usize = 4 << 20;

/// More do not make it faster: a few cores fill what the bus takes.
const READERS_MAX: usize = 8;

/// Uploads tensors as bf16, or as codes.
pub(super) struct Uploader {
    stream: Arc<CudaStream>,
    /// None before the first part that is read.
    readers: Vec<Reader>,
}

/// What one thread reads with.
struct Reader {
    stagings: [Staging; 2],
    turn: usize,
}

struct Staging {
    bytes: PinnedHostSlice<u8>,
    /// After the last copy out of `bytes`.
    copied: CudaEvent,
}

/// What tensors are on the GPU.
pub(super) trait Element: DeviceRepr + Sync {
    /// Reads elements from `start` on; `len` of them.
    ///
    /// # Safety
    /// There is room for as many behind `to`, which is aligned for them, and nobody else reaches it.
    unsafe fn read(part: &TensorPart<'_>, start: usize, to: *mut u8, len: usize);

    /// Makes a part on the GPU; `None` if it must be read.
    fn make(part: &TensorPart<'_>, out: CudaViewMut<'_, Self>, device: &Device) -> Option<OpResult>
    where
        Self: Sized;
}

impl Element for bf16 {
    unsafe fn read(part: &TensorPart<'_>, start: usize, to: *mut u8, len: usize) {
        // SAFETY: the caller's promise; any bits are a bf16.
        let out = unsafe { std::slice::from_raw_parts_mut(to.cast::<bf16>(), len) };
        part.read_bf16(start, out);
    }

    fn make(
        part: &TensorPart<'_>,
        mut out: CudaViewMut<'_, bf16>,
        device: &Device,
    ) -> Option<OpResult> {
        let DummyPart { tensor, first, rows, cols, width } = part.dummy()?;
        let (key, scale, mean) = (tensor.key, tensor.scale, tensor.mean);
        let out = (&mut out).into();
        let fill = DummyFill { out, key, first, rows, cols, width, scale, mean };
        Some(fill.launch(device).map_err(failed("make dummy weights")))
    }
}

/// A code, two, or a scale of E8M0.
impl Element for u8 {
    unsafe fn read(part: &TensorPart<'_>, start: usize, to: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(to, len) };
        part.read_bytes(start, out);
    }

    fn make(
        part: &TensorPart<'_>,
        mut out: CudaViewMut<'_, u8>,
        device: &Device,
    ) -> Option<OpResult> {
        if let Some(byte) = part.constant_byte() {
            let (stream, len) = (device.stream(), out.len());
            let (to, _used) = out.device_ptr_mut(stream);
            // SAFETY: all bytes of the view, which only this borrow reaches.
            let set = unsafe { result::memset_d8_async(to, byte, len, stream.cu_stream()) };
            return Some(set.map_err(failed("make dummy weights")));
        }
        let DummyCodePart { code, key, scale, first, rows, cols, width } = part.dummy_codes()?;
        let code = match code {
            Code::E4m3 => DummyCode::E4m3,
            Code::E2m1 => DummyCode::E2m1Pair,
        };
        let codes =
            DummyCodes { code, out: (&mut out).into(), key, first, rows, cols, width, scale };
        Some(codes.launch(device).map_err(failed("make dummy weights")))
    }
}

/// A piece of a part, and where on the GPU it goes.
struct Piece<'a> {
    part: &'a TensorPart<'a>,
    start: usize,
    len: usize,
    to: CUdeviceptr,
}

impl Uploader {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Uploader {
        Uploader { stream: stream.clone(), readers: Vec::new() }
    }

    /// All parts, one after the other, in an array of `len` elements at least theirs; the rest is 0.
    pub(super) fn upload<T: Element>(
        &mut self,
        device: &Device,
        parts: &[TensorPart<'_>],
        len: usize,
    ) -> OpResult<CudaSlice<T>> {
        let fault = |error: DriverError| failed("upload weights")(format!("{len} values: {error}"));
        let filled: usize = parts.iter().map(TensorPart::len).sum();
        // SAFETY: every element is written below: those of the parts, then the rest.
        let mut array = unsafe { self.stream.alloc::<T>(len) }.map_err(fault)?;
        let element = size_of::<T>();
        let start_of_array = super::memory::address(&array);
        if filled < len {
            let rest = start_of_array + (filled * element) as u64;
            // SAFETY: from the parts' end to the array's.
            unsafe {
                result::memset_d8_async(rest, 0, (len - filled) * element, self.stream.cu_stream())
            }
            .map_err(fault)?;
        }
        let (mut at, mut pieces) = (0, Vec::new());
        for part in parts {
            let range = at..at + part.len();
            at = range.end;
            if let Some(made) = T::make(part, array.slice_mut(range.clone()), device) {
                made?;
                continue;
            }
            let to = start_of_array + (range.start * element) as u64;
            let staging = STAGING_BYTES / element;
            pieces.extend((0..part.len()).step_by(staging).map(|start| Piece {
                part,
                start,
                len: staging.min(part.len() - start),
                to: to + (start * element) as u64,
            }));
        }
        self.copy::<T>(&pieces).map_err(fault)?;
        Ok(array)
    }

    /// Enqueues the copies of all pieces; all of them have been read when this returns.
    fn copy<T: Element>(&mut self, pieces: &[Piece<'_>]) -> Result<(), DriverError> {
        if pieces.is_empty() {
            return Ok(());
        }
        if self.readers.is_empty() {
            let count = std::thread::available_parallelism().map_or(1, usize::from);
            let reader = |_| Reader::new(self.stream.context());
            self.readers = (0..count.min(READERS_MAX)).map(reader).collect::<Result<_, _>>()?;
        }
        let (stream, next) = (&*self.stream, AtomicUsize::new(0));
        let run = |reader: &mut Reader| -> Result<(), DriverError> {
            stream.context().bind_to_thread()?;
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                reader.send::<T>(stream, piece)?;
            }
            Ok(())
        };
        // This thread reads too: a vector needs no other.
        let (own, others) = self.readers.split_at_mut(1);
        std::thread::scope(|scope| {
            let others = others.iter_mut().take(pieces.len() - 1);
            let others: Vec<_> = others.map(|reader| scope.spawn(|| run(reader))).collect();
            let own = own.iter_mut().try_for_each(&run);
            let joined = others.into_iter().map(|reader| match reader.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.fold(own, Result::and)
        })
    }
}

impl Drop for Uploader {
    /// The stagings must outlive the copies out of them.
    fn drop(&mut self) {
        // A GPU that has failed reads nothing any more.
        let _ = self.stream.synchronize();
    }
}

impl Reader {
    fn new(context: &Arc<CudaContext>) -> Result<Reader, DriverError> {
        let staging = || {
            // SAFETY: plain bytes, which are written before they are read.
            let bytes = unsafe { context.alloc_pinned_with_flags(STAGING_BYTES, 0) }?;
            Ok(Staging { bytes, copied: context.new_event(None)? })
        };
        Ok(Reader { stagings: [staging()?, staging()?], turn: 0 })
    }

    /// Reads a piece, and enqueues its copy.
    fn send<T: Element>(
        &mut self,
        stream: &CudaStream,
        piece: &Piece<'_>,
    ) -> Result<(), DriverError> {
        self.turn = 1 - self.turn;
        let staging = &mut self.stagings[self.turn];
        staging.copied.synchronize()?;
        let pinned = staging.bytes.as_mut_ptr()?;
        // SAFETY: a piece is no longer than a staging, which begins with a page and only this borrow reaches; the copy that
        // read it last is over.
        unsafe { T::read(piece.part, piece.start, pinned, piece.len) };
        // SAFETY: these bytes were written just now.
        let bytes = unsafe { std::slice::from_raw_parts(pinned, piece.len * size_of::<T>()) };
        // SAFETY: the array has room for all parts, and the pinned memory is not written again before
        // `copied` has passed.
        unsafe { result::memcpy_htod_async(piece.to, bytes, stream.cu_stream()) }?;
        staging.copied.record(stream)
    }
}

#[cfg(test)]
mod tests {
    use minisgl_proto::LoadOptions;

    use super::*;
    use crate::scheme::Scheme;
    use crate::weights::{self, HostTensor, MatrixPart, Part, TensorSpec, WeightSource};

    fn tensors() -> Vec<TensorSpec> {
        let tensor = TensorSpec::plain;
        vec![
            // Several stagings, the last of them not full.
            tensor("model.embed_tokens.weight", &[10_007, 520]),
            tensor("model.norm.weight", &[520]),
            tensor("model.layers.0.self_attn.k_proj.bias", &[64]),
            tensor("model.layers.0.self_attn.v_proj.bias", &[64]),
        ]
    }

    fn bits(values: &[bf16]) -> Vec<u16> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Uploads parts together, and holds what is on the GPU to what the host reads.
    fn check(device: &Device, uploader: &mut Uploader, parts: &[TensorPart<'_>], spare: usize) {
        let mut expected = Vec::new();
        for part in parts {
            match part.load() {
                HostTensor::Bf16(values) => expected.extend(values),
                other => expected.extend(other.into_f32().into_iter().map(bf16::from_f32)),
            }
        }
        expected.resize(expected.len() + spare, bf16::ZERO);
        let array = uploader.upload::<bf16>(device, parts, expected.len()).unwrap();
        let got = device.stream().clone_dtoh(&array).unwrap();
        assert!(bits(&got) == bits(&expected), "{} values", expected.len());
    }

    /// Dummies made on the GPU are the host's, and what is read in many pieces by many readers arrives
    /// whole, in any type and any window.
    #[test]
    fn what_arrives_is_what_was_read() {
        if !minisgl_kernels::testing::has_gpu() {
            return;
        }
        let device = Device::open(0).unwrap();
        let tensors = tensors();
        let dummies = LoadOptions { dummy_weights: true, ..LoadOptions::default() };
        let dir = tempfile::tempdir().unwrap();
        let source = weights::open(dir.path(), &tensors, &dummies).unwrap();
        let uploader = &mut Uploader::new(device.stream());
        every_window(&device, uploader, &*source);
        assert!(uploader.readers.is_empty(), "dummies take no pinned memory");

        let memory: Vec<bf16> = (0..3 * (STAGING_BYTES / 2) as u32 + 5)
            .map(|i| bf16::from_bits((i.wrapping_mul(2_654_435_761) >> 16) as u16))
            .collect();
        check(&device, uploader, &[TensorPart::of(&memory), TensorPart::of(&memory[1..4])], 3);
        check(&device, uploader, &[TensorPart::of(&[])], 8);

        use safetensors::Dtype;
        for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
            let raw: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
                .iter()
                .cloned()
                .map(|TensorSpec { name, shape, .. }| {
                    let values =
                        (0..shape.iter().product::<usize>()).map(|i| (i % 8191) as f32 / 64.0);
                    let bytes = match dtype {
                        Dtype::BF16 => {
                            values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect()
                        }
                        Dtype::F16 => {
                            values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect()
                        }
                        _ => values.flat_map(f32::to_le_bytes).collect(),
                    };
                    (name, shape, bytes)
                })
                .collect();
            let views = raw.iter().map(|(name, shape, bytes)| {
                (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
            });
            let path = dir.path().join("model.safetensors");
            safetensors::serialize_to_file(views, None, &path).unwrap();
            let source = weights::open(dir.path(), &tensors, &LoadOptions::default()).unwrap();
            every_window(&device, uploader, &*source);
        }
    }

    /// Codes of dummies, and scales that are the same all over, are made on the GPU, and are the host's.
    #[test]
    fn dummy_codes_are_made_where_they_are_needed() {
        if !minisgl_kernels::testing::has_gpu() {
            return;
        }
        let device = Device::open(0).unwrap();
        let shape = [3, 40, 640];
        let tensors = Scheme::Mxfp4.tensors("w", &shape);
        let dummies = LoadOptions { dummy_weights: true, ..LoadOptions::default() };
        let dir = tempfile::tempdir().unwrap();
        let source = weights::open(dir.path(), &tensors, &dummies).unwrap();
        let uploader = &mut Uploader::new(device.stream());
        // Every other row of the second matrix, and some columns of it.
        let row = |first: usize, cols| Part::Strided {
            first: 40 * 640 + first,
            rows: 20,
            row_stride: 2 * 640,
            cols,
            col_stride: 1,
        };
        for part in [row(0, 640), row(640, 640), row(64, 96)] {
            let part = MatrixPart::of(&*source, "w", &shape, Scheme::Mxfp4, &part).unwrap();
            let MatrixPart::Coded(part) = part else { panic!("these are codes") };
            for part in [part.codes(), part.scales()] {
                let mut expected = vec![0; part.len()];
                part.read_bytes(0, &mut expected);
                let array =
                    uploader.upload::<u8>(&device, std::slice::from_ref(part), part.len()).unwrap();
                assert!(
                    device.stream().clone_dtoh(&array).unwrap() == expected,
                    "{} bytes",
                    part.len()
                );
            }
        }
        assert!(uploader.readers.is_empty(), "dummies take no pinned memory");
    }

    fn every_window(device: &Device, uploader: &mut Uploader, source: &dyn WeightSource) {
        let part = |name: &str, shape: &[usize], part| source.part(name, shape, &part).unwrap();
        let table = |of| part("model.embed_tokens.weight", &[10_007, 520], of);
        check(device, uploader, &[table(Part::All)], 520);
        check(device, uploader, &[table(Part::Rows(3..9_000)), table(Part::Rows(0..1))], 0);
        check(device, uploader, &[table(Part::Cols(13..500))], 1);
        let norm = part("model.norm.weight", &[520], Part::All);
        check(device, uploader, &[norm], 0);
        let bias = |which| {
            part(&format!("model.layers.0.self_attn.{which}_proj.bias"), &[64], Part::Rows(1..64))
        };
        check(device, uploader, &[bias("k"), bias("v")], 2);
    }
}
