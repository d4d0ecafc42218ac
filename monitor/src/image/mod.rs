//! What an image holds, path by path, read from layer blobs whose digests were checked.
