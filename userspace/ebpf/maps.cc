// SPDX-License-Identifier: GPL-2.0-only
#include "ebpf/maps.h"

#include "base/log.h"

#include <algorithm>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <cerrno>
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>

// maps.bpf.o, built from bpf/maps.bpf.c, is part of the binary: what is loaded always fits.
extern "C" {
extern const unsigned char vql_maps_bpf_start[];
extern const unsigned char vql_maps_bpf_end[];
}
asm(".pushsection .rodata\n"
    ".balign 8\n"
    ".global vql_maps_bpf_start\n"
    "vql_maps_bpf_start: .incbin \"" VQL_MAPS_BPF_O "\"\n"
    ".global vql_maps_bpf_end\n"
    "vql_maps_bpf_end:\n"
    ".popsection\n");

namespace vql {

namespace {

struct object_closer {
    void operator()(bpf_object* o) const { bpf_object__close(o); }
};
using object = std::unique_ptr<bpf_object, object_closer>;

// The object with only map @wanted to be created.
result<object> open_object(const char* wanted) {
    bpf_object_open_opts options{};
    options.sz = sizeof(options);
    options.object_name = "vqlane";
    object o(bpf_object__open_mem(vql_maps_bpf_start, size_t(vql_maps_bpf_end - vql_maps_bpf_start),
                                  &options));
    if (!o)
        return errno_error("BPF object", errno);
    bpf_map* map = nullptr;
    bpf_object__for_each_map(map, o.get())
        bpf_map__set_autocreate(map, std::string(bpf_map__name(map)) == wanted);
    return o;
}

// Everything below @path that we make: pins and one level of folders.
void remove_tree(const std::string& path, int depth) {
    DIR* dir = opendir(path.c_str());
    if (!dir)
        return;
    while (const dirent* e = readdir(dir)) {
        const std::string name = e->d_name;
        if (name == "." || name == "..")
            continue;
        const std::string child = path + "/" + name;
        if (unlink(child.c_str()) < 0 && depth > 0) {
            remove_tree(child, depth - 1);
            rmdir(child.c_str());
        }
    }
    closedir(dir);
}

constexpr long bpf_fs_magic = 0xcafe4a11;

} // namespace

shared_array::~shared_array() {
    if (!pin_.empty())
        unlink(pin_.c_str());
}

result<std::unique_ptr<bpf_maps>> bpf_maps::open(const std::string& dir, bpf_mode mode) {
    auto maps = std::unique_ptr<bpf_maps>(new bpf_maps(dir));
    if (mode == bpf_mode::off)
        return maps;
    // Our own messages carry libbpf's reason as errno; its own lines would double them.
    libbpf_set_print([](libbpf_print_level, const char*, va_list) { return 0; });
    auto loaded = maps->load_tables();
    if (loaded)
        return maps;
    if (mode == bpf_mode::required)
        return error{"bpf = \"required\", but " + loaded.failure().text};
    log_info("without BPF maps (" + loaded.failure().text +
             "): statistics are to be had from the vqlane command only");
    return std::unique_ptr<bpf_maps>(new bpf_maps(dir)); // and what was begun is taken back
}

result<void> bpf_maps::load_tables() {
    struct statfs fs {};
    std::string existing = dir_;
    while (statfs(existing.c_str(), &fs) < 0 && existing.find('/', 1) != std::string::npos)
        existing.resize(existing.rfind('/'));
    if (long(fs.f_type) != bpf_fs_magic)
        return error{dir_ + " is not on a BPF file system (mount -t bpf bpf /sys/fs/bpf)"};
    for (size_t at = existing.size(); at != std::string::npos;) {
        at = dir_.find('/', at + 1);
        if (mkdir(dir_.substr(0, at).c_str(), 0700) < 0 && errno != EEXIST)
            return errno_error(dir_, errno);
    }
    lock_.reset(::open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!lock_)
        return errno_error(dir_, errno);
    if (flock(lock_.get(), LOCK_EX | LOCK_NB) < 0)
        return error{dir_ + " is in use by another vqlaned (give this one its own --bpf-dir)"};
    remove_tree(dir_, 1);

    auto o = open_object("tables");
    if (!o)
        return o.failure();
    if (const int err = bpf_object__load(o->get()); err < 0)
        return errno_error("BPF maps cannot be loaded", -err);
    bpf_map* map = bpf_object__find_map_by_name(o->get(), "tables");
    tables_.reset(fcntl(bpf_map__fd(map), F_DUPFD_CLOEXEC, 3));
    if (bpf_obj_pin(tables_.get(), (dir_ + "/tables").c_str()) < 0)
        return errno_error(dir_ + "/tables", errno);
    return {};
}

bpf_maps::~bpf_maps() {
    if (tables_)
        unlink((dir_ + "/tables").c_str());
    if (lock_)
        rmdir(dir_.c_str());
}

// A BPF file system reserves dots in names; colons cannot occur in a disk's.
std::string bpf_maps::disk_dir(const std::string& name) const {
    std::string safe = name;
    std::replace(safe.begin(), safe.end(), '.', ':');
    return dir_ + "/" + safe;
}

result<shared_array> bpf_maps::make(const std::string& name, const char* map_name, uint32_t entries,
                                    size_t value_bytes) {
    shared_array a;
    a.entries_ = entries;
    a.stride_ = (value_bytes + 7) & ~size_t{7}; // as the kernel lays out array maps
    const size_t bytes = (a.stride_ * entries + 4095) & ~size_t{4095};
    if (!active()) {
        a.memory_ = mapping::map(-1, bytes, MAP_PRIVATE | MAP_ANONYMOUS);
        if (!a.memory_)
            return errno_error("disk " + name + ": no memory for its " + map_name, errno);
        return a;
    }
    auto o = open_object(map_name);
    if (!o)
        return o.failure();
    bpf_map* map = bpf_object__find_map_by_name(o->get(), map_name);
    if (bpf_map__value_size(map) != value_bytes)
        return error{std::string("BPF map ") + map_name + " has another layout than the daemon"};
    bpf_map__set_max_entries(map, entries);
    if (const int err = bpf_object__load(o->get()); err < 0)
        return errno_error("disk " + name + ": BPF map " + map_name, -err);
    a.map_.reset(fcntl(bpf_map__fd(map), F_DUPFD_CLOEXEC, 3));
    a.memory_ = mapping::map(a.map_.get(), bytes, MAP_SHARED);
    if (!a.memory_)
        return errno_error("disk " + name + ": cannot map BPF map " + map_name, errno);
    const std::string dir = disk_dir(name);
    mkdir(dir.c_str(), 0700);
    const std::string pin = dir + "/" + map_name;
    unlink(pin.c_str());
    if (bpf_obj_pin(a.map_.get(), pin.c_str()) < 0)
        return errno_error(pin, errno);
    a.pin_ = pin;
    return a;
}

result<shared_array> bpf_maps::make_stats(const std::string& name, uint32_t pollers) {
    return make(name, "stats", pollers, sizeof(vql_disk_stats));
}

result<shared_array> bpf_maps::make_extents(const std::string& name, uint32_t disk,
                                            uint32_t chunks) {
    auto a = make(name, "extents", chunks, sizeof(uint64_t));
    if (!a || !active())
        return a;
    const int fd = a->map_.get();
    if (bpf_map_update_elem(tables_.get(), &disk, &fd, BPF_ANY) < 0)
        return errno_error("disk " + name + ": BPF map tables", errno);
    return a;
}

void bpf_maps::forget_disk(const std::string& name, uint32_t disk) {
    if (!active())
        return;
    bpf_map_delete_elem(tables_.get(), &disk);
    rmdir(disk_dir(name).c_str());
}

} // namespace vql
