// SPDX-License-Identifier: GPL-2.0-only
#include "ebpf/maps.h"

#include "base/log.h"
#include "ebpf/embed.h"
#include "ebpf/object.h"

#include <algorithm>
#include <bpf/bpf.h>
#include <cerrno>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>

// Of bpf/maps.bpf.c.
VQL_EMBED(vql_maps_bpf, VQL_BPF_DIR "/maps.bpf.o")

namespace vql {

namespace {

// A new map of the object, by its name; of an array @entries and @value_bytes, which have to be the
// object's.
result<unique_fd> load_map(const char* name, uint32_t entries, size_t value_bytes) {
    bpf_object_open_opts options{};
    options.sz = sizeof(options);
    options.object_name = "vqlane";
    const bpf_object_ptr o(
        bpf_object__open_mem(vql_maps_bpf_start, vql_maps_bpf_bytes(), &options));
    if (!o)
        return errno_error("BPF object", errno);
    bpf_map* other = nullptr;
    bpf_object__for_each_map(other, o.get())
        bpf_map__set_autocreate(other, std::string(bpf_map__name(other)) == name);
    bpf_map* map = bpf_object__find_map_by_name(o.get(), name);
    if (bpf_map__value_size(map) != value_bytes)
        return error{std::string("BPF map ") + name + " has another layout than the daemon"};
    bpf_map__set_max_entries(map, entries);
    if (const int err = bpf_object__load(o.get()); err < 0)
        return errno_error(std::string("BPF map ") + name, -err);
    return unique_fd(fcntl(bpf_map__fd(map), F_DUPFD_CLOEXEC, 3));
}

struct map_shape {
    uint32_t type, entries;
    size_t value_bytes;
};

bpf_map_info info_of(int map) {
    bpf_map_info info{};
    uint32_t bytes = sizeof(info);
    if (bpf_map_get_info_by_fd(map, &info, &bytes) < 0)
        return {};
    return info;
}

// The map pinned at @path; none, if there is none or it is of another shape.
unique_fd pinned_map(const std::string& path, const map_shape& shape) {
    unique_fd fd(bpf_obj_get(path.c_str()));
    if (!fd)
        return fd;
    const bpf_map_info info = info_of(fd.get());
    const bool fits = info.type == shape.type && info.key_size == sizeof(uint32_t) &&
                      info.max_entries == shape.entries && info.value_size == shape.value_bytes;
    return fits ? std::move(fd) : unique_fd();
}

constexpr map_shape disks_shape = {BPF_MAP_TYPE_ARRAY, VQL_MAX_DISKS, sizeof(vql_disk_entry)};
constexpr map_shape tables_shape = {BPF_MAP_TYPE_ARRAY_OF_MAPS, VQL_MAX_DISKS, sizeof(uint32_t)};

void remove_folder(const std::string& path) {
    DIR* dir = opendir(path.c_str());
    if (!dir)
        return;
    while (const dirent* e = readdir(dir))
        unlink((path + "/" + e->d_name).c_str());
    closedir(dir);
    rmdir(path.c_str());
}

constexpr long bpf_fs_magic = 0xcafe4a11;

} // namespace

result<void> shared_array::map(unique_fd fd, uint32_t entries, size_t value_bytes) {
    entries_ = entries;
    stride_ = (value_bytes + 7) & ~size_t{7}; // as the kernel lays out array maps
    const size_t bytes = (stride_ * entries + 4095) & ~size_t{4095};
    map_ = std::move(fd);
    memory_ = mapping::map(map_.get(), bytes, map_ ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
    if (!memory_)
        return errno_error("no memory", errno);
    return {};
}

result<std::unique_ptr<bpf_maps>> bpf_maps::open(const std::string& dir, bpf_mode mode) {
    auto maps = std::unique_ptr<bpf_maps>(new bpf_maps(dir));
    if (mode != bpf_mode::off) {
        auto ready = maps->hold_dir();
        if (ready) {
            auto found = maps->take_over();
            if (!found)
                return found.failure();
            if (!*found)
                ready = maps->make_outer();
        }
        if (ready)
            return maps;
        if (mode == bpf_mode::required)
            return error{"bpf = \"required\", but " + ready.failure().text};
        log_info("without BPF maps (" + ready.failure().text +
                 "): statistics are to be had from the vqlane command only");
        maps.reset(); // what was begun is taken back
        maps.reset(new bpf_maps(dir));
    }
    if (auto ok = maps->disks_.map({}, VQL_MAX_DISKS, sizeof(vql_disk_entry)); !ok)
        return ok.failure();
    return maps;
}

result<void> bpf_maps::hold_dir() {
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
    return {};
}

// What an earlier daemon left. False: it left nothing.
result<bool> bpf_maps::take_over() {
    const error other{dir_ + " holds maps of another version of vqlaned: this one's have version " +
                      std::to_string(VQL_MAPS_VERSION) +
                      ". Remove its disks with that version, or, if none is left in the kernel "
                      "module (/sys/bus/vdpa/devices), its maps: rm -r " +
                      dir_};
    const std::string path = dir_ + "/disks", tables_path = dir_ + "/tables",
                      stats_path = dir_ + "/stats_tables";
    if (access(path.c_str(), F_OK) < 0) {
        if (access(tables_path.c_str(), F_OK) == 0)
            return other; // from before there were versions
        return false;
    }
    unique_fd fd = pinned_map(path, disks_shape);
    if (!fd)
        return errno == EPERM ? result<bool>(false) : other;
    shared_array disks;
    if (auto ok = disks.map(std::move(fd), VQL_MAX_DISKS, sizeof(vql_disk_entry)); !ok)
        return error{path + ": " + ok.failure().text};
    std::bitset<VQL_MAX_DISKS> used;
    for (uint32_t slot = 0; slot < VQL_MAX_DISKS; slot++) {
        const auto& e = *reinterpret_cast<const vql_disk_entry*>(disks.at(slot));
        if (e.version != VQL_MAPS_VERSION || e.name[sizeof(e.name) - 1])
            return other;
        used[slot] = e.name[0];
    }
    unique_fd tables = pinned_map(tables_path, tables_shape);
    unique_fd stats_tables = pinned_map(stats_path, tables_shape);
    if ((!tables || !stats_tables) && used.any())
        return other;
    if (!tables || !stats_tables) { // it ended between them
        for (const std::string& pin : {path, tables_path, stats_path})
            unlink(pin.c_str());
        return false;
    }
    disks_ = std::move(disks);
    tables_ = std::move(tables);
    stats_tables_ = std::move(stats_tables);
    inherited_ = used;
    return true;
}

result<void> bpf_maps::make_outer() {
    auto disks = load_map("disks", disks_shape.entries, disks_shape.value_bytes);
    if (!disks)
        return disks.failure();
    auto tables = load_map("tables", tables_shape.entries, tables_shape.value_bytes);
    if (!tables)
        return tables.failure();
    auto stats_tables = load_map("stats_tables", tables_shape.entries, tables_shape.value_bytes);
    if (!stats_tables)
        return stats_tables.failure();
    const int fd = disks->get();
    if (auto ok = disks_.map(std::move(*disks), VQL_MAX_DISKS, sizeof(vql_disk_entry)); !ok)
        return ok;
    tables_ = std::move(*tables);
    stats_tables_ = std::move(*stats_tables);
    for (uint32_t slot = 0; slot < VQL_MAX_DISKS; slot++)
        entry(slot).version = VQL_MAPS_VERSION;
    if (bpf_obj_pin(fd, (dir_ + "/disks").c_str()) < 0)
        return errno_error(dir_ + "/disks", errno);
    if (bpf_obj_pin(tables_.get(), (dir_ + "/tables").c_str()) < 0)
        return errno_error(dir_ + "/tables", errno);
    if (bpf_obj_pin(stats_tables_.get(), (dir_ + "/stats_tables").c_str()) < 0)
        return errno_error(dir_ + "/stats_tables", errno);
    return {};
}

bpf_maps::~bpf_maps() {
    if (tables_ && !in_use())
        for (const char* pin : {"/kernel_stats", "/stats_tables", "/tables", "/disks"})
            unlink((dir_ + pin).c_str());
    if (lock_)
        rmdir(dir_.c_str());
}

bool bpf_maps::in_use() const {
    for (uint32_t slot = 0; slot < VQL_MAX_DISKS; slot++)
        if (entry(slot).name[0])
            return true;
    return false;
}

vql_disk_entry& bpf_maps::entry(uint32_t slot) const {
    return *reinterpret_cast<vql_disk_entry*>(disks_.at(slot));
}

// A BPF file system reserves dots in names; colons cannot occur in a disk's.
std::string bpf_maps::disk_dir(uint32_t slot) const {
    std::string safe = entry(slot).name;
    std::replace(safe.begin(), safe.end(), '.', ':');
    return dir_ + "/" + safe;
}

result<uint32_t> bpf_maps::take_slot(const std::string& name) {
    uint32_t free = VQL_MAX_DISKS;
    for (uint32_t slot = VQL_MAX_DISKS; slot-- > 0;) {
        if (name == entry(slot).name)
            return slot;
        if (!entry(slot).name[0])
            free = slot;
    }
    if (free == VQL_MAX_DISKS)
        return error{"more than " + std::to_string(VQL_MAX_DISKS) + " disks"};
    name.copy(entry(free).name, sizeof(vql_disk_entry::name) - 1);
    return free;
}

result<shared_array> bpf_maps::make(uint32_t slot, const char* map, uint32_t entries,
                                    size_t value_bytes) {
    const std::string what = "disk " + std::string(entry(slot).name) + ": ";
    unique_fd fd;
    if (active()) {
        fd = pinned_map(disk_dir(slot) + "/" + map, {BPF_MAP_TYPE_ARRAY, entries, value_bytes});
        if (!fd) {
            auto loaded = load_map(map, entries, value_bytes);
            if (!loaded)
                return error{what + loaded.failure().text};
            fd = std::move(*loaded);
        }
    }
    shared_array a;
    if (auto ok = a.map(std::move(fd), entries, value_bytes); !ok)
        return error{what + map + ": " + ok.failure().text};
    return a;
}

result<void> bpf_maps::pin(uint32_t slot, const char* map, const shared_array& array) const {
    const std::string dir = disk_dir(slot), path = dir + "/" + map;
    mkdir(dir.c_str(), 0700);
    unlink(path.c_str());
    if (bpf_obj_pin(array.map_.get(), path.c_str()) < 0)
        return errno_error(path, errno);
    return {};
}

// Value VQL_STATS_LANE is the kernel lane's program's from now on.
result<void> bpf_maps::publish_stats(uint32_t slot, const shared_array& stats) const {
    const int fd = stats.map_.get();
    if (bpf_map_update_elem(stats_tables_.get(), &slot, &fd, BPF_ANY) < 0)
        return errno_error("disk " + std::string(entry(slot).name) + ": BPF map stats_tables",
                           errno);
    return pin(slot, "stats", stats);
}

result<shared_array> bpf_maps::make_stats(uint32_t slot, uint32_t values) {
    auto a = make(slot, "stats", values, sizeof(vql_disk_stats));
    if (a && active())
        if (auto ok = publish_stats(slot, *a); !ok)
            return ok.failure();
    return a;
}

result<shared_array> bpf_maps::make_extents(uint32_t slot, uint32_t chunks, uint32_t chunk_shift) {
    if (active() && entry(slot).chunk_shift != chunk_shift)
        unlink((disk_dir(slot) + "/extents").c_str()); // its words mean something else
    return make(slot, "extents", chunks, sizeof(uint64_t));
}

result<void> bpf_maps::publish_extents(uint32_t slot, const shared_array& extents,
                                       uint32_t chunk_shift) {
    if (!active())
        return {};
    vql_disk_entry& e = entry(slot);
    const std::string what = "disk " + std::string(e.name) + ": BPF map tables";
    uint32_t seen = 0; // the id of the map that is there
    const bool other = bpf_map_lookup_elem(tables_.get(), &slot, &seen) == 0 &&
                       seen != info_of(extents.map_.get()).id;
    // It returns when programs that may have found the old table have ended.
    if (other && e.chunk_shift != chunk_shift && bpf_map_delete_elem(tables_.get(), &slot) < 0)
        return errno_error(what, errno);
    __atomic_store_n(&e.chunk_shift, chunk_shift, __ATOMIC_RELEASE);
    const int fd = extents.map_.get();
    if (bpf_map_update_elem(tables_.get(), &slot, &fd, BPF_ANY) < 0)
        return errno_error(what, errno);
    return pin(slot, "extents", extents);
}

void bpf_maps::forget_disk(uint32_t slot) {
    if (active()) {
        bpf_map_delete_elem(tables_.get(), &slot);
        bpf_map_delete_elem(stats_tables_.get(), &slot);
        remove_folder(disk_dir(slot));
    }
    entry(slot).chunk_shift = 0;
    std::memset(entry(slot).name, 0, sizeof(vql_disk_entry::name)); // last: till here it is found
    inherited_[slot] = false;
}

void bpf_maps::forget_unless(const std::function<bool(const std::string& name)>& lives) {
    for (uint32_t slot = 0; slot < VQL_MAX_DISKS; slot++)
        if (inherited_[slot] && !lives(entry(slot).name))
            forget_disk(slot);
}

} // namespace vql
