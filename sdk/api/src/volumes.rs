//! The names by which the parts of a cluster speak of volumes.

/// The provisioner of the built-in class, and the driver of the volumes that it makes.
pub const PROVISIONER: &str = "tandem.dev/local";
/// The label of a volume whose data is a folder of that node.
pub const NODE_LABEL: &str = "tandem.dev/node";
/// Keeps a volume's object until its folder is removed.
pub const FOLDER_FINALIZER: &str = "tandem.dev/local-volume";
/// Keeps a claim while pods use it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume while a claim has it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// The class of claims that name none.
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
pub const OLD_DEFAULT_CLASS: &str = "storageclass.beta.kubernetes.io/is-default-class";
/// What named a claim's class before there was a field.
pub const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
