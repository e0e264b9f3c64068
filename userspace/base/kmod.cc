// SPDX-License-Identifier: GPL-2.0-only
#include "base/kmod.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <vqlane/limits.h>

namespace vql {

namespace {

constexpr uint64_t page_bytes = 4096;

// A command that takes a structure. What it returns, or -1 with errno.
template <class T>
int command(const unique_fd& fd, unsigned long request, T& arg) {
    arg.size = sizeof(T);
    return ioctl(fd.get(), request, &arg);
}

// … and one that takes a number, or nothing.
int plain_command(const unique_fd& fd, unsigned long request, unsigned long arg = 0) {
    return ioctl(fd.get(), request, arg);
}

// A device of the module. Errors other than a missing node are explained here.
result<unique_fd> open_device(const std::string& path) {
    unique_fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (fd)
        return fd;
    if (errno == EPERM)
        return error{path +
                     ": needs CAP_SYS_RAWIO; run as root, or give the service that capability"};
    return errno_error(path, errno);
}

bool exists(const std::string& path) {
    return access(path.c_str(), F_OK) == 0;
}

std::string hex(uint64_t value) {
    static constexpr char digits[] = "0123456789abcdef";
    std::string text;
    do
        text.insert(text.begin(), digits[value & 15]);
    while (value >>= 4);
    return "0x" + text;
}

template <size_t N>
void put_name(char (&to)[N], const std::string& name) { // its length is checked by the module
    std::memcpy(to, name.data(), std::min(name.size(), N));
}

} // namespace

// ---- guest memory ----

result<void> kmod_mspace::read_regions() {
    regions_.resize(VQL_MAX_REGIONS);
    for (;;) {
        vql_mspace_regions r{};
        r.nregions = uint32_t(regions_.size());
        r.regions = reinterpret_cast<uintptr_t>(regions_.data());
        const bool fitted = command(fd_, VQL_IOC_MSPACE_REGIONS, r) == 0;
        if (!fitted && (errno != E2BIG || r.nregions <= regions_.size()))
            return errno_error("cannot learn the guest's memory regions", errno);
        regions_.resize(r.nregions);
        pages_ = r.pages;
        if (!fitted)
            continue; // once more, with room for all; a memory does not change
        if (!regular())
            return error{"the module tells of guest memory regions that do not fit together"};
        return {};
    }
}

bool kmod_mspace::regular() const {
    uint64_t page = 0;
    for (const vql_mregion& r : regions_) {
        if (r.first_page != page || !r.bytes || r.bytes % page_bytes)
            return false;
        page += r.bytes / page_bytes;
    }
    return page == pages_;
}

result<mapping> kmod_mspace::map() const {
    mapping m = mapping::map(fd_.get(), pages_ * page_bytes, MAP_SHARED | MAP_NORESERVE);
    if (!m)
        return errno_error("cannot map the guest's memory", errno);
    return m;
}

// ---- a disk ----

result<vql_disk_state> kmod_disk::state() const {
    vql_disk_state s{};
    if (command(fd_, VQL_IOC_DISK_STATE, s) < 0)
        return errno_error(who_ + ": cannot learn its state", errno);
    return s;
}

result<vql_disk_queue> kmod_disk::queue(uint32_t index) const {
    vql_disk_queue q{};
    q.index = index;
    if (command(fd_, VQL_IOC_DISK_QUEUE, q) < 0)
        return errno_error(who_ + " queue " + std::to_string(index), errno);
    return q;
}

result<unique_fd> kmod_disk::queue_fd(uint32_t index) const {
    unique_fd fd(plain_command(fd_, VQL_IOC_DISK_QUEUE_FD, index));
    if (!fd)
        return errno_error(who_ + " queue " + std::to_string(index) + ": its bell", errno);
    return fd;
}

result<std::optional<kmod_mspace>> kmod_disk::acquire(uint64_t epoch) const {
    vql_disk_acquire a{};
    a.epoch = epoch;
    kmod_mspace space{unique_fd(command(fd_, VQL_IOC_DISK_ACQUIRE, a))};
    if (!space && (errno == ESTALE || errno == EAGAIN))
        return std::optional<kmod_mspace>();
    if (!space)
        return errno_error(who_ + ": cannot acquire its queues", errno);
    if (auto ok = space.read_regions(); !ok)
        return error{who_ + ": " + ok.failure().text};
    return std::optional(std::move(space));
}

result<mapping> kmod_disk::map_inflight() const {
    const size_t bytes = shape_.queues * VQL_INFLIGHT_BYTES(shape_.queue_size);
    mapping m = mapping::map(fd_.get(), bytes, MAP_SHARED);
    if (!m)
        return errno_error(who_ + ": cannot map its in-flight record", errno);
    return m;
}

result<void> kmod_disk::yield(std::span<const uint32_t> next_avail) const {
    vql_disk_yield y{};
    y.nqueues = uint32_t(next_avail.size());
    y.next_avail = reinterpret_cast<uintptr_t>(next_avail.data());
    if (command(fd_, VQL_IOC_DISK_YIELD, y) < 0)
        return errno_error(who_ + ": cannot give its queues back", errno);
    return {};
}

result<bool> kmod_disk::set_lane(const kmod_lane& lane) const {
    vql_disk_lane l{};
    l.slot = lane.slot;
    l.busy_iops = lane.busy_iops;
    l.nranges = uint32_t(lane.ranges.size());
    l.ranges = reinterpret_cast<uintptr_t>(lane.ranges.data());
    std::copy(lane.id.begin(), lane.id.end(), l.id);
    if (command(fd_, VQL_IOC_DISK_LANE, l) == 0)
        return true;
    if (errno == EAGAIN)
        return false;
    if (errno == EOPNOTSUPP)
        return error{who_ +
                     ": the controller has no queue or interrupt left for the kernel lane, or "
                     "queues of fewer than the 128 entries that it needs"};
    return errno_error(who_ + ": its kernel lane", errno);
}

result<bool> kmod_disk::lend(uint32_t index, uint16_t next_avail) const {
    vql_disk_lend l{};
    l.index = index;
    l.next_avail = next_avail;
    if (command(fd_, VQL_IOC_DISK_LEND, l) == 0)
        return true;
    if (errno == ESTALE)
        return false;
    return errno_error(who_ + " queue " + std::to_string(index) + ": not lent", errno);
}

result<void> kmod_disk::take(uint32_t index) const {
    vql_disk_take t{};
    t.index = index;
    if (command(fd_, VQL_IOC_DISK_TAKE, t) < 0)
        return errno_error(who_ + " queue " + std::to_string(index) + ": not taken back", errno);
    return {};
}

result<vql_disk_remap> kmod_disk::remap(uint32_t index, uint32_t op, uint64_t sector,
                                        uint64_t sectors) const {
    vql_disk_remap r{};
    r.index = index;
    r.op = op;
    r.sector = sector;
    r.sectors = sectors;
    if (command(fd_, VQL_IOC_DISK_REMAP, r) < 0)
        return errno_error(who_ + " queue " + std::to_string(index) + ": no word from its policy",
                           errno);
    return r;
}

result<void> kmod_disk::set_config(std::span<const uint8_t, VQL_CONFIG_BYTES> config) const {
    vql_disk_config c{};
    std::memcpy(c.config, config.data(), sizeof(c.config));
    if (command(fd_, VQL_IOC_DISK_CONFIG, c) < 0)
        return errno_error(who_ + ": cannot change its configuration space", errno);
    return {};
}

result<void> kmod_disk::broken() const {
    if (plain_command(fd_, VQL_IOC_DISK_BROKEN) < 0)
        return errno_error(who_ + ": cannot tell its driver to reset it", errno);
    return {};
}

result<bool> kmod_disk::remove(bool later) const {
    if (plain_command(fd_, VQL_IOC_DISK_REMOVE, later ? VQL_REMOVE_LATER : 0) == 0)
        return true;
    if (errno == EBUSY)
        return false;
    return errno_error(who_ + ": cannot remove it", errno);
}

// ---- the control device ----

result<kmod_control> kmod_control::open(const std::string& folder) {
    const std::string path = folder + "/control";
    if (!exists(path))
        return error{path + " does not exist: the kernel module is not loaded (modprobe vqlane, or "
                            "insmod vqlane.ko)"};
    auto fd = open_device(path);
    if (!fd)
        return fd.failure();
    kmod_control c;
    c.fd_ = std::move(*fd);
    const bool answered = command(c.fd_, VQL_IOC_VERSION, c.version_) == 0;
    if (!answered && errno != EINVAL && errno != E2BIG && errno != ENOTTY)
        return errno_error(path, errno);
    if (!answered || c.version_.abi != VQL_ABI_VERSION)
        return error{
            "the loaded kernel module speaks version " +
            (answered ? std::to_string(c.version_.abi) : std::string("(unknown)")) +
            " of the interface, and this program version " + std::to_string(VQL_ABI_VERSION) +
            ": install both from one release, and load that module (rmmod vqlane; modprobe "
            "vqlane)"};
    return c;
}

result<std::vector<vql_disk_next>> kmod_control::list() const {
    std::vector<vql_disk_next> all;
    vql_disk_next next{};
    while (command(fd_, VQL_IOC_DISK_NEXT, next) == 0)
        all.push_back(next);
    if (errno != ENOENT)
        return errno_error("cannot list the kernel module's disks", errno);
    return all;
}

result<kmod_disk> kmod_control::create(const std::string& name,
                                       const kmod_disk_shape& shape) const {
    const std::string who = "disk " + name;
    vql_disk_create c{};
    put_name(c.name, name);
    c.features = shape.features;
    c.queues = shape.queues;
    c.queue_size = shape.queue_size;
    std::memcpy(c.config, shape.config.data(), sizeof(c.config));
    unique_fd fd(command(fd_, VQL_IOC_DISK_CREATE, c));
    if (!fd && errno == ENOSPC)
        return error{who + ": the kernel module has " + std::to_string(version_.max_disks) +
                     " disks, which is all it can have"};
    if (!fd && errno == EEXIST)
        return error{who + ": a VMM still has a disk of that name open, which was removed with "
                           "--force: end that guest first"};
    if (!fd)
        return errno_error(who + ": cannot create its vDPA device", errno);
    return kmod_disk(std::move(fd), who, shape);
}

result<std::optional<kmod_disk>> kmod_control::claim(const std::string& name) const {
    const std::string who = "disk " + name;
    vql_disk_claim c{};
    put_name(c.name, name);
    unique_fd fd(command(fd_, VQL_IOC_DISK_CLAIM, c));
    if (!fd && errno == ENOENT)
        return std::optional<kmod_disk>();
    if (!fd && errno == EBUSY)
        return error{who + " is served by another process already (another vqlaned?)"};
    if (!fd)
        return errno_error(who + ": cannot claim its vDPA device", errno);
    kmod_disk_shape shape{c.features, c.queues, c.queue_size, {}};
    std::memcpy(shape.config.data(), c.config, sizeof(c.config));
    return std::optional(kmod_disk(std::move(fd), who, shape));
}

result<kmod_mspace> kmod_control::create_mspace(const std::vector<vql_region>& regions) const {
    std::vector<vql_mregion> all;
    for (const vql_region& r : regions) {
        const auto host = reinterpret_cast<uintptr_t>(r.host);
        if ((r.guest | r.bytes | host) % page_bytes)
            return error{"the guest's memory at " + hex(r.guest) +
                         " is not whole pages of 4096 bytes, so it cannot be mapped for DMA"};
        vql_mregion m{};
        m.guest = r.guest;
        m.bytes = r.bytes;
        m.user = host;
        m.flags = r.flags & VQL_MEM_READ_ONLY ? VQL_REGION_READ_ONLY : 0;
        all.push_back(m);
    }
    vql_mspace_create c{};
    c.nregions = uint32_t(all.size());
    c.regions = reinterpret_cast<uintptr_t>(all.data());
    kmod_mspace space{unique_fd(command(fd_, VQL_IOC_MSPACE_CREATE, c))};
    if (!space)
        return errno_error("cannot pin the guest's memory", errno);
    space.regions_ = std::move(all);
    for (const vql_mregion& r : space.regions_)
        space.pages_ += r.bytes / page_bytes;
    if (!space.regular())
        return error{"the module tells of guest memory regions that do not fit together"};
    return space;
}

// ---- a queue pair ----

result<mapping> kmod_qpair::map_part(const char* what, uint64_t at, uint64_t bytes,
                                     bool writable) const {
    mapping m = mapping::map(fd_.get(), (bytes + page_bytes - 1) & ~(page_bytes - 1), MAP_SHARED,
                             off_t(at), writable ? PROT_READ | PROT_WRITE : PROT_READ);
    if (!m)
        return errno_error(std::string("cannot map a queue pair's ") + what, errno);
    return m;
}

result<void> kmod_qpair::map(bool shadow) {
    struct part {
        mapping& to;
        const char* what;
        uint64_t at, bytes;
        bool writable;
    };
    const part parts[] = {
        {status_, "state", VQL_QPAIR_MAP_STATUS, page_bytes, false},
        {sq_, "submission queue", VQL_QPAIR_MAP_SQ, made_.depth * sizeof(vql_nvme_sqe), true},
        {cq_, "completion queue", VQL_QPAIR_MAP_CQ, made_.depth * sizeof(vql_nvme_cqe), false},
        {doorbell_, "doorbells", VQL_QPAIR_MAP_DOORBELL, page_bytes, true},
        {pool_, "pool", VQL_QPAIR_MAP_POOL, made_.pool_pages * page_bytes, true},
        {shadow_, "shadow doorbells", VQL_QPAIR_MAP_SHADOW, shadow ? page_bytes : 0, true},
        {event_, "event indexes", VQL_QPAIR_MAP_EVENTIDX, shadow ? page_bytes : 0, false},
    };
    for (const part& p : parts) {
        if (!p.bytes)
            continue;
        auto m = map_part(p.what, p.at, p.bytes, p.writable);
        if (!m)
            return m.failure();
        p.to = std::move(*m);
    }
    const auto word = [](const mapping& m, uint32_t offset) {
        return reinterpret_cast<uint32_t*>(m.data() + offset);
    };
    queue_.sq = reinterpret_cast<vql_nvme_sqe*>(sq_.data());
    queue_.cq = reinterpret_cast<const vql_nvme_cqe*>(cq_.data());
    queue_.sq_doorbell = word(doorbell_, made_.sq_doorbell);
    queue_.cq_doorbell = word(doorbell_, made_.sq_doorbell + made_.doorbell_stride);
    if (shadow) {
        queue_.sq_shadow = word(shadow_, made_.sq_shadow);
        queue_.cq_shadow = word(shadow_, made_.sq_shadow + made_.doorbell_stride);
        queue_.sq_event = word(event_, made_.sq_shadow);
        queue_.cq_event = word(event_, made_.sq_shadow + made_.doorbell_stride);
    }
    queue_.pool = pool_.data();
    queue_.pool_dma = made_.pool_dma;
    queue_.pool_pages = made_.pool_pages;
    queue_.depth = made_.depth;
    queue_.qid = uint16_t(made_.qid);
    queue_.state = word(status_, offsetof(vql_qpair_status, state));
    return {};
}

std::vector<std::pair<void*, size_t>> kmod_qpair::revocable() const {
    std::vector<std::pair<void*, size_t>> all;
    for (const mapping* m : {&sq_, &cq_, &doorbell_, &pool_, &shadow_, &event_})
        if (*m)
            all.emplace_back(m->data(), m->size());
    return all;
}

void kmod_qpair::arm() const {
    plain_command(fd_, VQL_IOC_QPAIR_ARM);
}

void kmod_qpair::abort(uint16_t cid) const {
    plain_command(fd_, VQL_IOC_QPAIR_ABORT, cid);
}

result<std::optional<kmod_dma_table>> kmod_qpair::attach(const kmod_mspace& space) const {
    vql_qpair_attach a{};
    a.mspace_fd = space.fd();
    if (command(fd_, VQL_IOC_QPAIR_ATTACH, a) < 0) {
        if (errno == ENODEV && vql_load_acquire(queue().state))
            return std::optional<kmod_dma_table>();
        if (errno == ENOMEM || errno == EIO)
            return error{"the guest's memory cannot be mapped for its DMA (dmesg says why)"};
        return errno_error("cannot attach the guest's memory", errno);
    }
    kmod_dma_table t;
    t.slot_ = a.slot;
    t.pages_ = a.pages;
    auto m = map_part("DMA table", VQL_QPAIR_MAP_DMA(uint64_t{a.slot}), a.pages * sizeof(uint64_t),
                      false);
    if (m && a.pages == space.pages()) {
        t.map_ = std::move(*m);
        return std::optional(std::move(t));
    }
    detach(t);
    if (vql_load_acquire(queue().state)) // lost since a moment ago, and its tables with it
        return std::optional<kmod_dma_table>();
    return m ? error{"the DMA table is not of the guest memory's size"} : m.failure();
}

void kmod_qpair::detach(const kmod_dma_table& table) const {
    vql_qpair_detach d{};
    d.slot = table.slot_;
    command(fd_, VQL_IOC_QPAIR_DETACH, d);
}

// ---- a controller ----

result<kmod_ctrl> kmod_ctrl::open(const std::string& bdf, const std::string& folder) {
    const std::string path = folder + "/nvme-" + bdf;
    if (!exists(path)) {
        if (!exists(folder + "/control"))
            return kmod_control::open(folder).failure();
        return error{"controller " + bdf + " is not bound to vqlane (vqlane device bind " + bdf +
                     ")"};
    }
    auto fd = open_device(path);
    if (!fd)
        return fd.failure();
    kmod_ctrl c;
    c.fd_ = std::move(*fd);
    return c;
}

result<vql_ctrl_info> kmod_ctrl::info() const {
    vql_ctrl_info i{};
    if (command(fd_, VQL_IOC_CTRL_INFO, i) < 0)
        return errno_error("cannot learn the controller's state", errno);
    return i;
}

result<vql_ns_info> kmod_ctrl::ns_info(uint32_t nsid) const {
    vql_ns_info i{};
    i.nsid = nsid;
    if (command(fd_, VQL_IOC_NS_INFO, i) == 0)
        return i;
    if (errno == ENOENT)
        std::snprintf(i.reason, sizeof(i.reason), "it is not there, or not attached here");
    else if (errno == EAGAIN)
        return error{"its controller is being reset: try again"};
    else if (errno != EOPNOTSUPP)
        return errno_error("cannot learn of it", errno);
    i.reason[sizeof(i.reason) - 1] = 0;
    i.blocks = i.block_bytes = 0;
    return i;
}

result<void> kmod_ctrl::admin_read(uint32_t what, uint32_t nsid, std::span<uint8_t> into) const {
    vql_admin_read r{};
    r.what = what;
    r.nsid = nsid;
    r.bytes = uint32_t(into.size());
    r.data = reinterpret_cast<uintptr_t>(into.data());
    if (command(fd_, VQL_IOC_ADMIN_READ, r) < 0)
        return errno_error("cannot read what the controller tells of itself", errno);
    return {};
}

result<void> kmod_ctrl::reset() const {
    if (plain_command(fd_, VQL_IOC_CTRL_RESET) < 0 && errno != EAGAIN) // it is being reset
        return errno_error("cannot reset the controller", errno);
    return {};
}

result<kmod_qpair> kmod_ctrl::create_qpair(uint32_t depth, uint32_t pool_pages) const {
    auto i = info();
    if (!i)
        return i.failure();
    kmod_qpair q;
    q.made_.depth = depth;
    q.made_.pool_pages = pool_pages;
    q.fd_ = unique_fd(command(fd_, VQL_IOC_QPAIR_CREATE, q.made_));
    if (!q.fd_ && errno == ENOSPC)
        return error{"the controller has no queue pair left"};
    if (!q.fd_)
        return errno_error("cannot make a queue pair", errno);
    if (auto ok = q.map(i->flags & VQL_CTRL_SHADOW); !ok)
        return ok.failure();
    return q;
}

} // namespace vql
