// SPDX-License-Identifier: GPL-2.0-only
#include "ebpf/kernel_stats.h"

#include "ebpf/embed.h"
#include "ebpf/object.h"

#include <cerrno>
#include <unistd.h>

VQL_EMBED(vql_stats_bpf, VQL_BPF_DIR "/stats.bpf.o")

namespace vql {

result<void> attach_kernel_stats(const bpf_maps& maps) {
    const std::string pin = maps.dir() + "/kernel_stats";
    if (!maps.active() || access(pin.c_str(), F_OK) == 0)
        return {};
    const libbpf_words words;
    bpf_object_open_opts options{};
    options.sz = sizeof(options);
    options.object_name = "vqlane_stats";
    const bpf_object_ptr o(
        bpf_object__open_mem(vql_stats_bpf_start, vql_stats_bpf_bytes(), &options));
    if (!o)
        return errno_error("BPF program kernel_stats", errno);
    bpf_map* const map = bpf_object__find_map_by_name(o.get(), "stats_tables");
    if (const int err = bpf_map__reuse_fd(map, maps.stats_tables()); err < 0)
        return errno_error("BPF map stats_tables", -err);
    if (const int err = bpf_object__load(o.get()); err < 0)
        return error{errno_error("BPF program kernel_stats cannot be loaded", -err).text + "\n" +
                     words.text()};
    const bpf_link_ptr link(
        bpf_program__attach(bpf_object__find_program_by_name(o.get(), "kernel_stats")));
    if (!link)
        return errno_error("tracepoint vqlane_complete of the module", errno);
    if (const int err = bpf_link__pin(link.get(), pin.c_str()); err < 0)
        return errno_error(pin, -err);
    return {};
}

} // namespace vql
