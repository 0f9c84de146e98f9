//! TLS on both sides of the proxy.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use mongodb::options::TlsOptions;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::connection::Stream;
use crate::error::{Doing, Result, RigError};

/// What mongod's `--tlsCertificateKeyFile` and `--tlsCAFile` are given. The proxy shows the same certificate, and wants
/// none from its clients.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificate and key in one file.
    pub certificate_and_key: PathBuf,
    /// Who signed it.
    pub authority: PathBuf,
}

impl Tls {
    /// Makes an authority and a certificate for this machine, in this directory.
    pub fn issue(place: &Path) -> Result<Self> {
        let failed = |error: rcgen::Error| RigError::Check(format!("making a certificate: {error}"));
        let authority_key = KeyPair::generate().map_err(failed)?;
        let mut authority = CertificateParams::new(Vec::new()).map_err(failed)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority
            .distinguished_name
            .push(DnType::CommonName, "pbm-fs test authority");
        let root = authority.self_signed(&authority_key).map_err(failed)?;
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params =
            CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).map_err(failed)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "pbm-fs test server");
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        let tls = Self {
            certificate_and_key: place.join("server.pem"),
            authority: place.join("authority.pem"),
        };
        let both = certificate.pem() + &key.serialize_pem();
        for (path, pem) in [(&tls.certificate_and_key, both), (&tls.authority, root.pem())] {
            fs::write(path, pem).doing(format_args!("writing {}", path.display()))?;
        }
        Ok(tls)
    }

    /// How a mongod is started that speaks TLS with its cursor server and with other members, and lets in who does not.
    pub fn mongod_args(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let mode = [
            "--tlsMode",
            "preferTLS",
            "--tlsAllowConnectionsWithoutCertificates",
        ]
        .map(String::from);
        let files = [
            "--tlsCertificateKeyFile".into(),
            path(&self.certificate_and_key),
            "--tlsCAFile".into(),
            path(&self.authority),
        ];
        [&mode[..], &files[..]].concat()
    }

    pub(super) fn for_driver(&self) -> mongodb::options::Tls {
        let options = TlsOptions::builder().ca_file_path(self.authority.clone()).build();
        mongodb::options::Tls::Enabled(options)
    }

    pub(super) fn prepare(&self) -> Result<TlsEnds> {
        let unusable = |what: &dyn std::fmt::Display| RigError::Check(format!("the proxy's TLS: {what}"));
        let certificates = CertificateDer::pem_file_iter(&self.certificate_and_key)
            .and_then(Iterator::collect)
            .map_err(|error| unusable(&error))?;
        let key =
            PrivateKeyDer::from_pem_file(&self.certificate_and_key).map_err(|error| unusable(&error))?;
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(|error| unusable(&error))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&self.authority).map_err(|error| unusable(&error))? {
            let certificate = certificate.map_err(|error| unusable(&error))?;
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
        let client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsEnds {
            acceptor: Arc::new(server).into(),
            connector: Arc::new(client).into(),
        })
    }
}

/// Ready to shake hands.
#[derive(Clone)]
pub(super) struct TlsEnds {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

/// A client, with the handshake done if there is to be one.
pub(super) async fn accept(tls: Option<&TlsEnds>, stream: TcpStream) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    Ok(match tls {
        None => Box::new(stream),
        Some(ends) => Box::new(ends.acceptor.accept(stream).await?),
    })
}

/// The real server, likewise.
pub(super) async fn connect(tls: Option<&TlsEnds>, address: SocketAddr) -> io::Result<Stream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(match tls {
        None => Box::new(stream),
        Some(ends) => {
            let name = ServerName::IpAddress(address.ip().into());
            Box::new(ends.connector.connect(name, stream).await?)
        }
    })
}
