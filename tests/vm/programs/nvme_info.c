// SPDX-License-Identifier: GPL-2.0-only
// nvme_info BDF: what vqlane.ko says of a controller and its first namespace, as NAME=VALUE, one a
// line. qpair is 0 if it gives out a queue pair of the depth that it names, else the error.
#include "lane.h"

int main(int argc, char** argv) {
    struct vql_ns_info ns = {.size = sizeof(ns), .nsid = 1};
    struct vql_ctrl_info info;

    open_ctrl(argc, argv);
    info = get_info();
    NEED(!ioctl(ctrl, VQL_IOC_NS_INFO, &ns));
    struct vql_qpair_create req = {.size = sizeof(req), .depth = info.max_depth, .pool_pages = 1};
    printf("state=%u\n", info.state);
    printf("translated=%u\n", !!(info.flags & VQL_CTRL_TRANSLATED));
    printf("shadow=%u\n", !!(info.flags & VQL_CTRL_SHADOW));
    printf("suspended=%u\n", !!(info.flags & VQL_CTRL_SUSPENDED));
    printf("max_depth=%u\n", info.max_depth);
    printf("max_transfer=%u\n", info.max_transfer);
    printf("discard=%u\n", info.oncs >> 2 & 1);
    printf("write_zeroes=%u\n", info.oncs >> 3 & 1);
    printf("dmrsl=%u\n", info.dmrsl);
    printf("namespaces=%u\n", info.namespaces);
    printf("boundary=%u\n", ns.boundary_blocks * ns.block_bytes);
    printf("qpair=%d\n", error_of(ioctl(ctrl, VQL_IOC_QPAIR_CREATE, &req)));
    return 0;
}
