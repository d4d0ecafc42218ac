//! A registry for tests, in this process.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// What a registry does with a request.
pub(crate) enum Answer {
    /// Sends this and closes.
    Text(String),
    /// Sends this, then more and more.
    Endless(String, &'static str),
    /// Sends this and then nothing.
    Silent(String),
}

pub(crate) fn text(answer: impl Into<String>) -> Answer {
    Answer::Text(answer.into())
}

pub(crate) fn headed(status: &str, header: &str) -> Answer {
    text(format!(
        "HTTP/1.1 {status}\r\n{header}\r\nContent-Length: 0\r\n\r\n"
    ))
}

type Answers = dyn Fn(&str, usize) -> Answer + Send + Sync;

/// A registry on loopback, which answers by a request's head and how many came before.
pub(crate) struct Fake {
    pub(crate) authority: String,
    asked: Arc<Mutex<Vec<String>>>,
    pub(super) directory: TempDir,
    pub(super) plain_http: Vec<String>,
}

impl Fake {
    pub(crate) async fn start(
        answers: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_at("127.0.0.1", None, answers).await
    }

    pub(super) async fn start_at(
        host: &str,
        tls: Option<TlsAcceptor>,
        answers: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = format!("{host}:{}", listener.local_addr().unwrap().port());
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (answers, noted): (Arc<Answers>, _) = (Arc::new(answers), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answers, noted, tls) = (Arc::clone(&answers), Arc::clone(&noted), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &*answers, &noted).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &*answers, &noted).await;
                            }
                        }
                    }
                });
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let fake = Self {
            plain_http: vec![authority.clone()],
            authority,
            asked,
            directory,
        };
        fs::write(fake.ca(), generated().cert.pem()).unwrap();
        fake
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// What asks it, and waits for little.
    pub(crate) fn registry(&self, credentials: Option<PathBuf>) -> Registry {
        let options = Options {
            enabled: true,
            credentials,
            ca: self.ca(),
            plain_http: self.plain_http.clone(),
        };
        let limits = client::Limits {
            connect: Duration::from_secs(20),
            silence: Duration::from_millis(500),
            pauses: [Duration::from_millis(1); 2],
        };
        Registry::within(&options, limits).unwrap()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answers: &Answers,
    noted: &Mutex<Vec<String>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let before = {
        let mut noted = noted.lock().unwrap();
        noted.push(head.clone());
        noted.len() - 1
    };
    // Whoever has had enough goes away.
    let _ = match answers(&head, before) {
        Answer::Text(text) => {
            let _ = stream.write_all(text.as_bytes()).await;
            stream.shutdown().await
        }
        Answer::Endless(text, more) => {
            let _ = stream.write_all(text.as_bytes()).await;
            let more = more.repeat(1000);
            while stream.write_all(more.as_bytes()).await.is_ok() {}
            Ok(())
        }
        Answer::Silent(text) => {
            let _ = stream.write_all(text.as_bytes()).await;
            stream.read_u8().await.map(drop)
        }
    };
}

pub(super) fn generated() -> CertifiedKey<rcgen::KeyPair> {
    generate_simple_self_signed(["localhost".to_owned()]).unwrap()
}
