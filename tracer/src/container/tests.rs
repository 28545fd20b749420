//! Paths and files in the shapes that each runtime gives them.

use super::files;
use super::{Container, Group, Names, Runtime, common, of_path, of_proc};
use expect_test::{Expect, expect};

const ID: &str = "3f4e8f1b2c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5";
const OTHER: &str = "aa4e8f1b2c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5";
const POD: &str = "0d8c9b7e-1f2a-4c3d-9e8f-7a6b5c4d3e2f";
/// The same in the name of a slice.
const POD_IN_SLICE: &str = "0d8c9b7e_1f2a_4c3d_9e8f_7a6b5c4d3e2f";
const STATIC_POD: &str = "5e8d3c2b1a0f9e8d7c6b5a4f3e2d1c0b";

#[track_caller]
fn check(path: &str, runtime: Option<Runtime>, id: Option<&str>, pod: Option<&str>) {
    let group = Group { runtime, id: id.map(str::to_owned), pod: pod.map(str::to_owned) };
    let path =
        path.replace("ID", ID).replace("OTHER", OTHER).replace("SLICE", POD_IN_SLICE).replace("POD", POD);
    assert_eq!(of_path(&path), (group != Group::default()).then_some(group), "{path}");
}

#[test]
fn docker() {
    let docker = Some(Runtime::Docker);
    check("/docker/ID", docker, Some(ID), None);
    check("/system.slice/docker-ID.scope", docker, Some(ID), None);
    check("/system.slice/docker-ID.scope/init.scope", docker, Some(ID), None);
    check("/user.slice/user-1000.slice/user@1000.service/app.slice/docker-ID.scope", docker, Some(ID), None);
    // One within another, and a cluster in one (kind).
    check("/docker/ID/docker/OTHER", docker, Some(OTHER), None);
    let in_kind = "/system.slice/docker-ID.scope/kubelet.slice/kubelet-kubepods.slice/\
                   kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podSLICE.slice/\
                   cri-containerd-OTHER.scope";
    check(in_kind, Some(Runtime::Containerd), Some(OTHER), Some(POD));
    // Docker's own processes.
    check("/system.slice/docker.service", None, None, None);
    check("/docker/buildx/x", None, None, None);
}

#[test]
fn kubernetes_with_containerd() {
    let containerd = Some(Runtime::Containerd);
    for class in ["kubepods-burstable-", "kubepods-besteffort-", "kubepods-"] {
        let pod = format!("/kubepods.slice/{class}podSLICE.slice");
        check(&format!("{pod}/cri-containerd-ID.scope"), containerd, Some(ID), Some(POD));
        check(&pod, None, None, Some(POD));
    }
    // The other driver does not tell who made it.
    for class in ["/burstable", "/besteffort", ""] {
        check(&format!("/kubepods{class}/podPOD/ID"), None, Some(ID), Some(POD));
    }
    check(&format!("/kubepods/pod{STATIC_POD}/ID"), None, Some(ID), Some(STATIC_POD));
    check(
        "/system.slice/containerd.service/kubepods-burstable-podSLICE.slice:cri-containerd:ID",
        containerd,
        Some(ID),
        Some(POD),
    );
    check("/system.slice/nerdctl-ID.scope", containerd, Some(ID), None);
    check("/system.slice/containerd.service", None, None, None);
    // `ctr` names its containers as it likes.
    check("/default/web", None, None, None);
}

#[test]
fn kubernetes_with_docker() {
    let path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSLICE.slice/docker-ID.scope";
    check(path, Some(Runtime::Docker), Some(ID), Some(POD));
}

#[test]
fn crio() {
    let crio = Some(Runtime::CriO);
    let pod = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podSLICE.slice";
    check(&format!("{pod}/crio-ID.scope"), crio, Some(ID), Some(POD));
    check(&format!("{pod}/crio-ID.scope/container"), crio, Some(ID), Some(POD));
    check("/kubepods/besteffort/podPOD/crio-ID", crio, Some(ID), Some(POD));
    // What watches over a container is not in it.
    check(&format!("{pod}/crio-conmon-ID.scope"), None, None, None);
    check("/kubepods/besteffort/podPOD/crio-conmon-ID", None, None, None);
}

#[test]
fn podman() {
    let podman = Some(Runtime::Podman);
    check("/machine.slice/libpod-ID.scope", podman, Some(ID), None);
    check("/machine.slice/libpod-ID.scope/container", podman, Some(ID), None);
    check("/machine.slice/machine-libpod_pod_OTHER.slice/libpod-ID.scope/container", podman, Some(ID), None);
    let user = "/user.slice/user-1000.slice/user@1000.service/user.slice";
    check(&format!("{user}/libpod-ID.scope/container"), podman, Some(ID), None);
    check(&format!("{user}/user-libpod_pod_OTHER.slice/libpod-ID.scope/container"), podman, Some(ID), None);
    check("/libpod_parent/libpod-ID", podman, Some(ID), None);
    check("/system.slice/web.service/libpod-payload-ID", podman, Some(ID), None);
    check("/machine.slice/libpod-conmon-ID.scope", None, None, None);
}

#[test]
fn what_is_something_else_is_nothing() {
    for path in [
        "",
        "/",
        "/init.scope",
        "/user.slice/user-1000.slice/session-1.scope",
        "/system.slice/nginx.service",
        "/machine.slice/machine-qemu\\x2d1.scope",
        "/lxc.payload.web",
        "/ID",
        "/docker/web",
        "/docker/3f4e8f1b2c6d",
        "/podPOD/ID",
        "/kubepods.slice/kubepods-burstable-pod12.slice",
        "/kubepods-podSLICE",
        "/system.slice/docker-ID.mount",
        "/system.slice/docker-IDx.scope",
        "/x-podSLICE.slice",
    ] {
        check(path, None, None, None);
    }
}

#[test]
fn of_processes() {
    let docker = Group { runtime: Some(Runtime::Docker), id: Some(ID.to_owned()), pod: None };
    let check = |text: &str, expected: Option<&Group>| {
        assert_eq!(of_proc(&text.replace("ID", ID)).as_ref(), expected, "{text}");
    };
    check("0::/system.slice/docker-ID.scope\n", Some(&docker));
    check("12:pids:/docker/ID\n11:cpu,cpuacct:/docker/ID\n1:name=systemd:/docker/ID\n0::/\n", Some(&docker));
    check("12:pids:/docker/ID\n1:name=systemd:/\n0::/system.slice/containerd.service\n", Some(&docker));
    check(&format!("12:pids:/docker/ID\n1:name=systemd:/docker/{OTHER}\n"), None);
    check("0::/init.scope\n", None);
    check("", None);
    check("no colons", None);
}

#[test]
fn what_many_have_in_common() {
    let group = |path: &str| of_path(&path.replace("ID", ID).replace("OTHER", OTHER).replace("POD", POD));
    let one = || group("/kubepods/podPOD/ID");
    let pod = Group { pod: Some(POD.to_owned()), ..Group::default() };
    assert_eq!(common([one(), one()]), one());
    assert_eq!(common([one(), group("/kubepods/podPOD/OTHER"), one()]), Some(pod));
    assert_eq!(common([one(), None]), None);
    assert_eq!(common([group("/docker/ID"), group("/docker/OTHER")]), None);
    assert_eq!(common([]), None);
}

fn shown(names: Option<Names>) -> String {
    names.map_or_else(
        || "nothing".to_owned(),
        |Names { container, pod, namespace }| format!("{container:?} {pod:?} {namespace:?}"),
    )
}

#[test]
fn files_of_runtimes() {
    let check = |names, expected: Expect| expected.assert_eq(&shown(names));
    let docker = format!(
        r#"{{"StreamConfig":{{}},"State":{{"Running":true,"Pid":4711}},"ID":"{ID}","Created":"2026-04-01T12:00:00Z",
            "Config":{{"Hostname":"3f4e8f1b2c6d","Image":"nginx","Labels":{{"maintainer":"NGINX"}}}},"Name":"/web"}}"#
    );
    check(files::docker(docker.as_bytes(), ID), expect![[r#"Some("web") None None"#]]);
    check(files::docker(docker.as_bytes(), OTHER), expect!["nothing"]);
    let dockershim = format!(
        r#"{{"ID":"{ID}","Config":{{"Labels":{{"io.kubernetes.container.name":"web","io.kubernetes.pod.name":"cart-0",
            "io.kubernetes.pod.namespace":"shop"}}}},"Name":"/k8s_web_cart-0_shop_{POD}_0"}}"#
    );
    check(files::docker(dockershim.as_bytes(), ID), expect![[r#"Some("web") Some("cart-0") Some("shop")"#]]);
    let containerd = br#"{"ociVersion":"1.1.0","process":{"args":["nginx"]},"annotations":{
        "io.kubernetes.cri.container-name":"web","io.kubernetes.cri.container-type":"container",
        "io.kubernetes.cri.sandbox-name":"cart-0","io.kubernetes.cri.sandbox-namespace":"shop"}}"#;
    check(files::oci(containerd), expect![[r#"Some("web") Some("cart-0") Some("shop")"#]]);
    let crio = br#"{"annotations":{"io.kubernetes.container.name":"web","io.kubernetes.pod.name":"cart-0",
        "io.kubernetes.pod.namespace":"shop","io.kubernetes.cri-o.ContainerType":"container"}}"#;
    check(files::oci(crio), expect![[r#"Some("web") Some("cart-0") Some("shop")"#]]);
    check(files::oci(br#"{"annotations":{"nerdctl/name":"web"}}"#), expect![[r#"Some("web") None None"#]]);
    check(files::oci(br#"{"ociVersion":"1.1.0"}"#), expect!["nothing"]);
    let podman = format!(
        r#"[{{"id":"{OTHER}","names":["db"],"image":"x","layer":"y","metadata":"{{}}","created":"2026-04-01T12:00:00Z"}},
            {{"id":"{ID}","names":["web"],"image":"x","layer":"z"}}]"#
    );
    check(files::storage(podman.as_bytes(), ID), expect![[r#"Some("web") None None"#]]);
    check(files::storage(b"[]", ID), expect!["nothing"]);
    check(
        files::pod_log(&format!("shop_cart-0_{POD}"), POD),
        expect![[r#"None Some("cart-0") Some("shop")"#]],
    );
    check(files::pod_log(&format!("shop_cart-0_{POD}"), STATIC_POD), expect!["nothing"]);
    check(
        files::container_log(&format!("cart-0_shop_web-{ID}.log"), ID),
        expect![[r#"Some("web") Some("cart-0") Some("shop")"#]],
    );
    check(files::container_log(&format!("cart-0_shop_web-{ID}.log"), OTHER), expect!["nothing"]);
    for bytes in [&b""[..], b"{", b"[1]", b"\xff"] {
        let all = [files::docker(bytes, ID), files::oci(bytes), files::storage(bytes, ID)];
        assert!(all.iter().all(Option::is_none), "{bytes:?}");
    }
}

#[test]
fn in_words() {
    let check = |path: &str, names: Names, expected: Expect| {
        let path = path.replace("ID", ID).replace("POD", POD);
        let group = of_path(&path).expect("a container");
        expected.assert_eq(&Container { group, names }.to_string());
    };
    let named = |container: Option<&str>, pod: Option<&str>| Names {
        container: container.map(str::to_owned),
        pod: pod.map(str::to_owned),
        namespace: pod.map(|_| "shop".to_owned()),
    };
    check("/docker/ID", named(Some("web"), None), expect!["container web (docker 3f4e8f1b2c6d)"]);
    check("/docker/ID", named(None, None), expect!["container docker 3f4e8f1b2c6d"]);
    let pod = "/kubepods/podPOD/ID";
    check(pod, named(Some("web"), Some("cart-0")), expect!["pod shop/cart-0, container web (3f4e8f1b2c6d)"]);
    check(
        pod,
        named(None, None),
        expect!["pod 0d8c9b7e-1f2a-4c3d-9e8f-7a6b5c4d3e2f, container 3f4e8f1b2c6d"],
    );
    check("/kubepods/podPOD", named(None, Some("cart-0")), expect!["pod shop/cart-0"]);
}
