//! Manifests of updates, catalogs, versions, names and comments with any content.

use ai_agent::internals::protocol::update::{
    ArtifactName, CatalogArtifact, MAX_ARTIFACT_BYTES, MAX_MANIFEST_BYTES, MAX_OFFERED, Platform,
    ReleaseCatalog, TrustedComment, UpdateManifest, UpdateRelease, Version,
};

/// Fails if an accepted manifest has a value out of range, a text is not written as it was read, or the
/// manifest of a catalog would be refused by an agent.
pub fn run(body: &[u8]) {
    if let Ok(manifest) = UpdateManifest::parse(body) {
        assert!(body.len() <= MAX_MANIFEST_BYTES);
        assert!(manifest.releases.len() <= MAX_OFFERED);
        manifest.releases.iter().for_each(check);
        assert_eq!(UpdateManifest::parse(&manifest.to_json()).unwrap(), manifest);
    }
    if let Ok(catalog) = ReleaseCatalog::parse(body) {
        assert_eq!(ReleaseCatalog::parse(&catalog.to_json().unwrap()).unwrap(), catalog);
        let artifacts = catalog.releases.iter().flat_map(|release| &release.artifacts);
        for platform in artifacts.map(CatalogArtifact::platform) {
            offered(&catalog, &platform);
        }
    }
    if let Ok(text) = std::str::from_utf8(body) {
        words(text);
    }
}

fn check(release: &UpdateRelease) {
    assert!(release.rollout.percent <= 100);
    assert!((1..=MAX_ARTIFACT_BYTES).contains(&release.size));
    name(&release.artifact);
}

fn name(name: &ArtifactName) {
    let name = name.as_str();
    assert!(name.starts_with("ai-agent-") && name.len() <= 128);
    assert!(!name.contains(['/', '\\', '\0', ':', ' ']));
}

fn offered(catalog: &ReleaseCatalog, platform: &Platform) {
    assert!(catalog.has_platform(platform));
    let manifest = catalog.manifest(platform, None);
    assert_eq!(UpdateManifest::parse(&manifest.to_json()).unwrap(), manifest);
    for release in &manifest.releases {
        assert!(catalog.artifact(&release.artifact).is_some());
        let newer = catalog.manifest(platform, Some(&release.version)).releases;
        assert!(newer.iter().all(|it| it.version > release.version));
    }
}

fn words(text: &str) {
    if let Ok(version) = text.parse::<Version>() {
        assert_eq!(version.to_string(), text);
    }
    if let Ok(comment) = text.parse::<TrustedComment>() {
        assert_eq!(comment.to_string(), text);
    }
    if let Ok(artifact) = text.parse::<ArtifactName>() {
        assert_eq!(artifact.as_str(), text);
        name(&artifact);
    }
}
