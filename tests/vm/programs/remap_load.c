// SPDX-License-Identifier: GPL-2.0-only
// Registers a vqlane_remap_ops with vqlane.ko, with nothing between libbpf and the module: what the
// daemon would not even try.
//
//   remap_load FILE [DISK]   as the default, or as the policy of DISK; says "attached" and takes it
//                            away on SIGTERM; or says which call fails, and how
//   remap_load --pinned PIN  "LINK MAP NAME": the link there, and what it has attached
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <vqlane/policy.h>

static int failed(const char* what, int err) {
    printf("%s: %s\n", what, strerror(err));
    return 1;
}

static int show(const char* pin) {
    struct bpf_link_info link;
    struct bpf_map_info map;
    __u32 bytes = sizeof(link);
    int fd = bpf_obj_get(pin);

    memset(&link, 0, sizeof(link));
    memset(&map, 0, sizeof(map));
    if (fd < 0 || bpf_link_get_info_by_fd(fd, &link, &bytes))
        return failed(pin, errno);
    __u32 id; /* struct_ops.map_id, first in the union: headers older than 6.3 do not know it */
    memcpy(&id, &link.raw_tracepoint, sizeof(id));
    fd = bpf_map_get_fd_by_id(id);
    bytes = sizeof(map);
    if (fd < 0 || bpf_map_get_info_by_fd(fd, &map, &bytes))
        return failed("its map", errno);
    printf("%u %u %s\n", link.id, map.id, map.name);
    return 0;
}

int main(int argc, char** argv) {
    if (argc == 3 && !strcmp(argv[1], "--pinned"))
        return show(argv[2]);
    if (argc < 2)
        return failed("usage: remap_load FILE [DISK]", EINVAL);
    sigset_t end;
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigprocmask(SIG_BLOCK, &end, NULL);
    struct bpf_object* object = bpf_object__open_file(argv[1], NULL);
    if (!object)
        return failed("open", errno);
    struct bpf_map *map, *ops = NULL;
    bpf_object__for_each_map(map, object) {
        if (bpf_map__type(map) == BPF_MAP_TYPE_STRUCT_OPS)
            ops = map;
        else
            bpf_map__set_autocreate(map, false);
    }
    if (!ops)
        return failed("no struct_ops", EINVAL);
    struct vqlane_remap_ops* value = bpf_map__initial_value(ops, NULL);
    if (argc > 2)
        memcpy(value->disk, argv[2], strnlen(argv[2], sizeof(value->disk)));
    if (bpf_object__load(object))
        return failed("load", errno);
    struct bpf_link* link = bpf_map__attach_struct_ops(ops);
    if (!link)
        return failed("attach", errno);
    printf("attached\n");
    fflush(stdout);
    int got;
    sigwait(&end, &got);
    bpf_link__destroy(link);
    return 0;
}
