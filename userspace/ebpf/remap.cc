// SPDX-License-Identifier: GPL-2.0-only
#include "ebpf/remap.h"

#include "base/fd.h"
#include "ebpf/embed.h"
#include "ebpf/object.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <vector>
#include <vqlane/policy.h>

VQL_EMBED(vql_remap_bpf, VQL_BPF_DIR "/remap.bpf.o")

namespace vql {

namespace {

// Of a policy's file. Debugging information and all, they are a tenth of it.
constexpr off_t max_object_bytes = 4 << 20;

constexpr const char* ops_name = "vqlane_remap_ops";

// What libbpf and the kernel say, below one's own words.
error refused(const std::string& text, const libbpf_words& words) {
    std::string all = text;
    if (!words.text().empty())
        all += ":\n" + words.text();
    while (all.back() == '\n')
        all.pop_back();
    return {all};
}

result<std::vector<uint8_t>> read_object(const std::string& file) {
    const unique_fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat st {};
    if (!fd || fstat(fd.get(), &st) < 0)
        return errno_error(file, errno);
    if (!S_ISREG(st.st_mode))
        return error{file + " is not a file (the object that clang made of a policy is expected)"};
    if (st.st_size > max_object_bytes)
        return error{file + ": " + std::to_string(st.st_size) +
                     " bytes are too many for a policy, which has at most " +
                     std::to_string(max_object_bytes) +
                     " (llvm-strip -g takes off what is only "
                     "for debuggers)"};
    std::vector<uint8_t> bytes(size_t(st.st_size));
    for (size_t at = 0; at < bytes.size();) {
        const ssize_t n = ::read(fd.get(), bytes.data() + at, bytes.size() - at);
        if (n <= 0)
            return errno_error(file, n < 0 ? errno : EIO);
        at += size_t(n);
    }
    return bytes;
}

// The one struct_ops of the object, which has to be ours. Errors begin like "has …".
result<bpf_map*> find_ops(bpf_object& o) {
    bpf_map *map = nullptr, *found = nullptr;
    bpf_object__for_each_map(map, &o) {
        if (bpf_map__type(map) != BPF_MAP_TYPE_STRUCT_OPS)
            continue;
        const btf* types = bpf_object__btf(&o);
        const btf_type* type = btf__type_by_id(types, bpf_map__btf_value_type_id(map));
        const std::string name = type ? btf__name_by_offset(types, type->name_off) : "";
        if (name != ops_name)
            return error{"has a struct_ops " + name + ", and only " + ops_name + " is a policy"};
        if (found)
            return error{std::string("has more than one struct_ops ") + ops_name};
        found = map;
    }
    if (!found)
        return error{std::string("has no struct_ops ") + ops_name +
                     " (in section .struct_ops.link; see bpf/README.md)"};
    return found;
}

// Check the object's vqlane_remap_ops, and have it name @disk.
result<void> name_disk(bpf_map& map, const std::string& disk) {
    size_t bytes = 0;
    auto* ops = static_cast<vqlane_remap_ops*>(bpf_map__initial_value(&map, &bytes));
    if (!ops || bytes != sizeof(*ops))
        return error{std::string("has a struct ") + ops_name + " of " + std::to_string(bytes) +
                     " bytes, and this version's has " + std::to_string(sizeof(*ops))};
    if (!ops->remap) // libbpf has the program there, once the object is open
        return error{std::string("has a struct ") + ops_name + " without remap()"};
    const std::string named(ops->disk, strnlen(ops->disk, sizeof(ops->disk)));
    if (!named.empty() && named != disk)
        return error{"is for disk " + named + " (leave .disk empty for one that fits all)"};
    disk.copy(ops->disk, sizeof(ops->disk) - 1);
    return {};
}

// struct_ops.map_id, first in the union. Headers older than Linux 6.3 do not know it.
uint32_t struct_ops_map(const bpf_link_info& info) {
    uint32_t id = 0;
    std::memcpy(&id, &info.raw_tracepoint, sizeof(id));
    return id;
}

// It is gone when this returns; without it, it goes when the kernel has time for it.
void end_link(const std::string& pin) {
    const unique_fd link(bpf_obj_get(pin.c_str()));
    if (link)
        bpf_link_detach(link.get());
    unlink(pin.c_str());
}

} // namespace

remap_programs::~remap_programs() {
    // An earlier daemon's as well, that this one had no use for.
    if (maps_.active() && !maps_.in_use())
        end_link(default_pin());
}

// Load @o, for @disk (none: the default), and have it in the place of the link at @pin, or pin it.
result<void> remap_programs::load(bpf_object& o, const std::string& disk,
                                  const std::string& pin) const {
    auto ops = find_ops(o);
    if (!ops)
        return ops.failure();
    if (auto ok = name_disk(**ops, disk); !ok)
        return ok;
    bpf_map* map = nullptr;
    bpf_object__for_each_map(map, &o) {
        const std::string name = bpf_map__name(map);
        if (name == "disks" || name == "tables") // those that are there
            bpf_map__set_pin_path(map, (maps_.dir() + "/" + name).c_str());
        else if (name == "stats" || name == "extents") // a disk's: not by these names
            bpf_map__set_autocreate(map, false);
    }
    libbpf_words words;
    if (const int err = bpf_object__load(&o); err < 0)
        return refused(std::string("is refused by the kernel (") + std::strerror(-err) + ")",
                       words);

    const bpf_link_ptr made(bpf_map__attach_struct_ops(*ops));
    if (made) {
        unlink(pin.c_str());
        if (const int err = bpf_link__pin(made.get(), pin.c_str()); err < 0)
            return errno_error("cannot be pinned at " + pin, -err);
        return {};
    }
    const int err = errno;
    // There is one already. If it is ours, this one takes its place.
    const unique_fd link(err == EEXIST ? bpf_obj_get(pin.c_str()) : -1);
    if (link && bpf_link_update(link.get(), bpf_map__fd(*ops), nullptr) == 0)
        return {};
    if (err == EEXIST && !link)
        return error{"cannot be attached: another program is, which " + maps_.dir() +
                     " knows nothing of (of another vqlaned? bpftool link list)"};
    return refused(std::string("cannot be attached (") + std::strerror(link ? errno : err) + ")",
                   words);
}

result<void> remap_programs::load_default() {
    bpf_object_open_opts options{};
    options.sz = sizeof(options);
    options.object_name = "vqlane_remap";
    const bpf_object_ptr o(
        bpf_object__open_mem(vql_remap_bpf_start, vql_remap_bpf_bytes(), &options));
    if (!o)
        return errno_error("BPF object", errno);
    if (auto ok = load(*o, "", default_pin()); !ok)
        return error{"the default program " + ok.failure().text};
    active_ = true;
    return {};
}

result<void> remap_programs::set_policy(uint32_t slot, const std::string& disk,
                                        const std::string& file) const {
    auto bytes = read_object(file);
    if (!bytes)
        return bytes.failure();
    // Maps that the policy has pinned by name are in the disk's folder, and go with the disk.
    const std::string folder = maps_.disk_dir(slot);
    bpf_object_open_opts options{};
    options.sz = sizeof(options);
    options.object_name = "vqlane_policy";
    options.pin_root_path = folder.c_str();
    libbpf_words words;
    const bpf_object_ptr o(bpf_object__open_mem(bytes->data(), bytes->size(), &options));
    if (!o)
        return refused(file + " is not a BPF object (" + std::strerror(errno) + ")", words);
    if (auto ok = load(*o, disk, policy_pin(slot)); !ok)
        return error{file + " " + ok.failure().text};
    return {};
}

result<void> remap_programs::remove_policy(uint32_t slot, const std::string& disk) const {
    if (policy(slot).empty())
        return error{"disk " + disk + " has no policy"};
    end_link(policy_pin(slot));
    return {};
}

std::string remap_programs::policy(uint32_t slot) const {
    if (!maps_.active())
        return {};
    const unique_fd link(bpf_obj_get(policy_pin(slot).c_str()));
    bpf_link_info info{};
    uint32_t bytes = sizeof(info);
    if (!link || bpf_link_get_info_by_fd(link.get(), &info, &bytes) < 0)
        return {};
    const unique_fd map(bpf_map_get_fd_by_id(struct_ops_map(info)));
    bpf_map_info ops{};
    bytes = sizeof(ops);
    if (!map || bpf_map_get_info_by_fd(map.get(), &ops, &bytes) < 0)
        return {}; // detached
    return ops.name;
}

} // namespace vql
