use tandem_tests::machine::Network;

use super::tutorial::run;

#[test]
fn ingresses_lead_to_containers_and_components() {
    let network = Network::new();
    let cluster = super::cluster(&network);
    run(&cluster, "ingress.txt", "ingress", &[]);
}
