// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/server.h"

#include "base/lock_holder.h"
#include "base/log.h"
#include "daemon/probes.h"
#include "frontend/guest_memory.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

namespace vql {

namespace {

int last_allowed_cpu() {
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof(set), &set);
    int last = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(size_t(cpu), &set))
            last = cpu;
    return last;
}

// Descriptors: three eventfds a queue, and the rings' tables of files. What the hard limit allows.
void raise_limits() {
    rlimit l{};
    if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l);
    }
}

} // namespace

server::~server() {
    entries_.clear(); // before the pollers that serve them and the maps they are in
    pollers_.clear();
}

result<void> server::start() {
    raise_limits();
    if (auto ok = lock_run_dir(); !ok)
        return ok;
    if (auto ok = guard_guest_memory(); !ok)
        return ok;
    auto maps = bpf_maps::open(config_.bpf_dir, config_.bpf);
    if (!maps)
        return maps.failure();
    maps_ = std::move(*maps);
    remap_ = std::make_unique<remap_programs>(*maps_);
    if (auto ok = start_pollers(); !ok)
        return ok;
    controllers_ =
        std::make_unique<controller_set>(loop_, pollers_, config_.allow_untranslated_dma);
    targets_.set_controllers(controllers_.get());
    auto served = std::make_shared<raw_record>(served_file(config_));
    served->keep([this](const std::string& path) {
        return std::any_of(config_.targets.begin(), config_.targets.end(),
                           [&](const target_config& t) { return t.path == path; });
    });
    keeper_ = std::make_unique<target_keeper>(loop_, targets_, *controllers_, pollers_,
                                              std::move(served));
    keeper_->on_change([this](const std::string& name) { target_changed(name); });
    services_ = std::make_unique<disk_services>(loop_, targets_, *keeper_, *maps_, *remap_,
                                                pollers_, *controllers_, config_);
    for (const target_config& t : config_.targets)
        keeper_->want(t);
    controllers_->serving();
    for (const disk_config& d : config_.disks) {
        result<void> added;
        add_disk(d, {}, if_missing::wait, [&added](result<void> ok) { added = std::move(ok); });
        if (disk_entry* e = find_entry(d.name))
            e->asked = nullptr; // from here on it is told in the list
        if (!added)             // two of one name: load_config() knows no others
            return added;
        // A guest that an earlier daemon has served waits for its own disk, not for all of them.
        loop_.run_once(0);
    }
    loop_.every_second([this] { once_a_second(); });
    return {};
}

// Targets and disks of which it is not known yet whether they can be served.
size_t server::unsettled() const {
    return keeper_->first_tries() +
           size_t(std::count_if(entries_.begin(), entries_.end(), [](const auto& e) {
               return e->now == disk_entry::phase::opening;
           }));
}

result<void> server::settle(bool strict) {
    using clock = std::chrono::steady_clock;
    // A controller may have to let go of a dead daemon's queue pairs first: controller::take()
    // waits for that.
    constexpr std::chrono::seconds patience{2}, patience_for_controllers{35}, longest{60};
    const auto begin = clock::now();
    auto until = begin + patience;
    for (size_t before = unsettled(); !ending_; loop_.run_once(10)) {
        const size_t left = unsettled();
        const auto now = clock::now();
        if (left < before ||
            (keeper_->opens_controllers() && now < begin + patience_for_controllers))
            until = now + patience;
        before = left;
        if (!left || (!strict && (now >= until || now >= begin + longest)))
            break;
    }
    if (ending_)
        return {};
    report_orphans();
    if (!strict)
        return {};
    for (const target_config& t : config_.targets)
        if (const wanted_target* w = keeper_->find(t.name);
            w && w->now() != wanted_target::phase::ready)
            return error{w->problem()};
    for (const auto& e : entries_)
        if (e->now == disk_entry::phase::opening || e->now == disk_entry::phase::waiting)
            return error{"disk " + e->settings.name + ": " + problem(*e)};
    return {};
}

result<void> server::lock_run_dir() {
    const std::string& dir = config_.run_dir;
    // One that is there stays as somebody made it: setgid, or for a group alone. In ours all may
    // pass, whatever our umask: who may connect is up to each socket's mode.
    if (mkdir(dir.c_str(), 0755) == 0)
        chmod(dir.c_str(), 0755);
    else if (errno != EEXIST)
        return errno_error(dir, errno);
    // What a killed one may still write to is kept from us by the targets' own locks.
    auto lock = take_lock_file(dir, "vqlaned.lock",
                               dir + " is in use by another vqlaned (give this one its own "
                                     "--run-dir)");
    if (!lock)
        return lock.failure();
    lock_ = std::move(*lock);
    return {};
}

result<void> server::start_pollers() {
    if (config_.pollers.empty())
        config_.pollers.push_back(last_allowed_cpu());
    for (int cpu : config_.pollers) {
        const poller::options o{cpu, uint32_t(pollers_.size()), uint64_t{config_.spin_us} * 1000,
                                config_.spin_always};
        auto p = poller::start(o, loop_, targets_.table());
        if (!p)
            return p.failure();
        pollers_.push_back(std::move(*p));
    }
    return {};
}

// A disk that the module still has, of an earlier daemon or configuration: removed, unless a VMM
// has it open. Claimed for a moment and not served, for nobody here knows where its bytes are.
result<void> server::remove_orphan(const std::string& name) {
    auto module = services().module();
    if (!module)
        return error{"disk " + name + " does not exist"};
    auto found = (*module)->claim(name);
    if (!found)
        return error{"disk " + name + ": " + found.failure().text};
    if (!*found)
        return error{"disk " + name + " does not exist"};
    auto gone = (*found)->remove(false);
    if (!gone)
        return gone.failure();
    if (!*gone)
        return error{
            "disk " + name +
            " is not in the configuration, and a VMM has it open; end that guest first, or "
            "remove the disk with --force"};
    orphans(); // and its maps go
    log_info("disk " + name + ": removed");
    return {};
}

// The same by force: what its guest still asks for gets an error, so it is taken over, on a target
// of its size that moves no data and that disk::remove() lets no request reach.
result<void> server::adopt(disk_entry& e) {
    const std::string& name = e.settings.name;
    const error unknown{"disk " + name + " does not exist"};
    auto module = services().module();
    if (!module)
        return unknown;
    disk_config c;
    target_config t;
    virtio_blk_config told{};
    bool discard = false;
    {
        auto found = (*module)->claim(name);
        if (!found)
            return error{"disk " + name + ": " + found.failure().text};
        if (!*found)
            return unknown;
        const kmod_disk_shape& shape = (*found)->shape();
        std::memcpy(&told, shape.config.data(), std::min(sizeof(told), shape.config.size()));
        discard = shape.features & 1ull << VIRTIO_BLK_F_DISCARD;
        t.type = target_type::null;
        t.name = "orphan:" + name;
        t.bytes = told.capacity << VQL_SECTOR_SHIFT;
        c.name = name;
        c.frontend = frontend_type::vdpa;
        c.queues = shape.queues;
        c.queue_size = shape.queue_size;
        c.read_only = shape.features & 1ull << VIRTIO_BLK_F_RO;
        c.extents.push_back({t.name, 0, 0});
    }
    auto null = make_null_target(t.name, t.bytes);
    null->discard = discard; // it has to look as it did
    null->block_bytes = told.blk_size;
    if (auto ok = keeper_->adopt(t, std::move(null)); !ok)
        return ok.failure();
    auto d = disk::create(c, "", services());
    if (!d) {
        keeper_->drop(t.name, [] {});
        return d.failure();
    }
    e.settings = c;
    e.served = std::move(*d);
    return {};
}

// What an earlier daemon left that is none of our disks: those in the module. Maps of disks that
// are not even there go.
std::vector<vql_disk_next> server::orphans() {
    std::vector<vql_disk_next> all;
    if (access(kmod_folder, F_OK) == 0) {
        auto module = services().module();
        if (!module)
            return {};
        auto listed = (*module)->list();
        if (!listed)
            return {};
        all = std::move(*listed);
    }
    maps_->forget_unless([&](const std::string& name) {
        return find_entry(name) ||
               std::any_of(all.begin(), all.end(), [&](const auto& d) { return name == d.name; });
    });
    std::erase_if(all, [&](const vql_disk_next& d) { return d.claimed || find_entry(d.name); });
    return all;
}

void server::report_orphans() {
    for (const vql_disk_next& d : orphans())
        log_warning(std::string("disk ") + d.name +
                    " is in the kernel module but not in the configuration: its guest waits. "
                    "Add it, or end it with: vqlane disk rm " +
                    d.name + " --force");
}

// Disks are closed at once, and their files as soon as no other disk is on them: should storage
// that hangs keep one disk, and with it the process, the others can be somebody else's.
void server::stop(std::function<void()> done) {
    stopped_ = std::move(done);
    ending_ = true; // what is ready only now is the next daemon's
    if (keeper_)
        keeper_->ending();
    for (const auto& e : entries_) {
        if (!e->served || (e->now == disk_entry::phase::closing && !e->served->waits_for_vmm()))
            continue; // or its end is under way, and comes by itself
        stopping_.push_back(e.get());
        e->served->close([this, &e = *e] {
            std::erase(stopping_, &e);
            for (const extent_config& x : e.settings.extents) {
                const wanted_target* w = keeper_->find(x.target);
                const auto users = users_of(x.target);
                if (w && w->is_file() &&
                    std::none_of(users.begin(), users.end(), [this](const disk_entry* user) {
                        return user->now == disk_entry::phase::closing ||
                               std::find(stopping_.begin(), stopping_.end(), user) !=
                                   stopping_.end();
                    }))
                    keeper_->drop(x.target, [] {});
            }
            check_stopped();
        });
    }
    check_stopped();
}

// Has all that keeps a daemon from its end, ended? A VMM may have a disk open for ever.
void server::check_stopped() {
    if (!stopped_ || !stopping_.empty() ||
        std::any_of(entries_.begin(), entries_.end(), [](const auto& e) {
            return e->now == disk_entry::phase::closing && e->served && !e->served->waits_for_vmm();
        }))
        return;
    loop_.post(std::exchange(stopped_, nullptr));
}

void server::once_a_second() {
    targets_.report_errors();
    controllers_->tick();
    keeper_->look_at_namespaces([this](const target& t) {
        for (const auto& e : entries_)
            if (e->served)
                e->served->target_changed(t);
    });
    keeper_->tick();
    look_at_disks();
    check_stopped();
    for (const auto& e : entries_)
        if (e->served)
            e->served->tick();
    // bpftool can attach to a function, but not raise a USDT probe's semaphore: its pins are one.
    trace_session.store(access((config_.bpf_dir + "/trace").c_str(), F_OK) == 0,
                        std::memory_order_relaxed);
    if (!guard_trips()) // nobody ever took memory away from us
        return;
    for (const auto& e : entries_)
        if (e->served)
            e->served->check_memory();
}

} // namespace vql
