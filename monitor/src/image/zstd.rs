//! The frames of a zstd stream, one after the other: `ruzstd` reads one.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// A frame of nothing. `ruzstd` bounds the window (to 100 MiB) only of frames after the first.
const EMPTY_FRAME: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0];

/// Bytes decoded at once.
const CHUNK_BYTES: usize = 128 << 10;

/// See the module. Memory is bounded by the window of a frame.
pub(super) struct ZstdReader<R> {
    input: R,
    frame: FrameDecoder,
}

impl<R: BufRead> ZstdReader<R> {
    pub(super) fn new(input: R) -> io::Result<Self> {
        let mut frame = FrameDecoder::new();
        let mut empty = EMPTY_FRAME;
        frame.init(&mut empty).map_err(io::Error::other)?;
        frame
            .decode_blocks(&mut empty, BlockDecodingStrategy::All)
            .map_err(io::Error::other)?;
        Ok(Self { input, frame })
    }

    /// What is left of the compressed stream.
    pub(super) fn into_inner(self) -> R {
        self.input
    }

    /// Begins the next frame; false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.input.fill_buf()?.is_empty() {
            match self.frame.reset(&mut self.input) {
                Ok(()) => return Ok(true),
                // Tables of contents of lazily pulled images are in such frames.
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut self.input.by_ref().take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.frame.can_collect() == 0 {
            if self.frame.is_finished() {
                if !self.next_frame()? {
                    return Ok(0);
                }
            } else {
                let some = BlockDecodingStrategy::UptoBytes(CHUNK_BYTES);
                self.frame
                    .decode_blocks(&mut self.input, some)
                    .map_err(io::Error::other)?;
            }
        }
        self.frame.read(into)
    }
}
