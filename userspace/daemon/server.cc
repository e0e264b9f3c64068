// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/server.h"

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
    disks_.clear(); // before the pollers that serve them and the maps they are in
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
    services_ = std::make_unique<disk_services>(loop_, targets_, *maps_, *remap_, pollers_,
                                                *controllers_, config_);
    for (const target_config& t : config_.targets)
        if (auto opened = open_target(t); !opened)
            return opened.failure();
    controllers_->serving();
    for (const disk_config& d : config_.disks) {
        if (auto added = add_disk(d); !added)
            return added.failure();
        // A guest that an earlier daemon has served waits for its own disk, not for all of them.
        loop_.run_once(0);
    }
    report_orphans();
    loop_.every_second([this] { once_a_second(); });
    return {};
}

result<void> server::lock_run_dir() {
    const std::string& dir = config_.run_dir;
    if (mkdir(dir.c_str(), 0755) < 0 && errno != EEXIST)
        return errno_error(dir, errno);
    const std::string path = dir + "/vqlaned.lock";
    lock_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!lock_)
        return errno_error(path, errno);
    if (flock(lock_.get(), LOCK_EX | LOCK_NB) < 0)
        return error{dir + " is in use by another vqlaned (give this one its own --run-dir)"};
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

result<target*> server::open_target(const target_config& c) {
    auto t = targets_.open(c);
    if (!t)
        return t;
    target* opened = *t;
    if (opened->kind == target_kind::uring && !opened->direct)
        log_info("target " + c.name + ": " + c.path +
                 " does not take O_DIRECT in blocks of 512 bytes; going through the page cache");
    for (auto& p : pollers_)
        p->post([p = p.get(), opened] { p->add_target(*opened); });
    return opened;
}

// The pollers hold the file in their tables: it is closed when the last has let go of it.
void server::close_target(target& t, std::function<void()> done) {
    targets_.retire(t);
    auto left = std::make_shared<size_t>(pollers_.size());
    for (auto& p : pollers_) {
        p->post([this, p = p.get(), &t, left, done] {
            p->remove_target(t);
            loop_.post([this, &t, left, done] {
                if (--*left != 0)
                    return;
                targets_.close(t, done);
            });
        });
    }
}

disk* server::find(const std::string& name) const {
    for (const auto& d : disks_)
        if (d->settings().name == name)
            return d.get();
    return nullptr;
}

result<disk*> server::add_disk(const disk_config& c,
                               const std::vector<target_config>& own_targets) {
    if (find(c.name))
        return error{"disk " + c.name + " exists already"};
    std::string socket;
    if (c.frontend == frontend_type::vhost_user) {
        auto path = disk_socket(config_.run_dir, c);
        if (!path)
            return path.failure();
        socket = *path;
    }
    std::vector<target*> opened;
    const auto refuse = [&](error why) {
        for (target* t : opened)
            close_target(*t, [] {});
        return why;
    };
    for (const target_config& own : own_targets) {
        if (targets_.find(own.name))
            continue;
        auto t = open_target(own);
        if (!t)
            return refuse(t.failure());
        opened.push_back(*t);
    }
    auto d = disk::create(c, socket, services());
    if (!d)
        return refuse(d.failure());
    disks_.push_back(std::move(*d));
    log_info("disk " + c.name + ": listening on " + disks_.back()->address());
    return disks_.back().get();
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
result<disk*> server::adopt(const std::string& name) {
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
    auto opened = open_target(t);
    if (!opened)
        return opened.failure();
    (*opened)->discard = discard; // it has to look as it did
    (*opened)->block_bytes = told.blk_size;
    auto added = add_disk(c);
    if (!added)
        close_target(**opened, [] {});
    return added;
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
        return find(name) ||
               std::any_of(all.begin(), all.end(), [&](const auto& d) { return name == d.name; });
    });
    std::erase_if(all, [&](const vql_disk_next& d) { return d.claimed || find(d.name); });
    return all;
}

void server::report_orphans() {
    for (const vql_disk_next& d : orphans())
        log_warning(std::string("disk ") + d.name +
                    " is in the kernel module but not in the configuration: its guest waits. "
                    "Add it, or end it with: vqlane disk rm " +
                    d.name + " --force");
}

void server::remove_disk(const std::string& name, bool force, completion done) {
    disk* d = find(name);
    const bool orphan = !d;
    if (orphan && !force)
        return done(remove_orphan(name));
    if (orphan) {
        auto adopted = adopt(name);
        if (!adopted)
            return done(adopted.failure());
        d = *adopted;
    }
    if (std::find(leaving_.begin(), leaving_.end(), name) != leaving_.end())
        return done(error{"disk " + name + " is being removed already"});
    if (d->connected() && !force)
        return done(error{"disk " + name +
                          " has a guest connected; detach it there first, or "
                          "remove the disk with --force"});
    leaving_.push_back(name);
    d->remove(force, [this, d, name, orphan, done](result<void> ok) {
        std::erase(leaving_, name);
        if (!ok && orphan) // not ours after all
            return d->close(
                [this, d, done, why = ok.failure()] { disk_ended(d, [done, why] { done(why); }); });
        if (!ok)
            return done(std::move(ok));
        disk_ended(d, [name, done] {
            log_info("disk " + name + ": removed");
            done({});
        });
    });
}

// Destroy @d, and the targets that were opened for it, if nobody else uses them; @done when these
// are closed, so that they can be opened again.
void server::disk_ended(disk* d, std::function<void()> done) {
    std::vector<target*> own;
    for (target* t : d->layout().targets)
        if (made_for_disk(t->name))
            own.push_back(t);
    std::erase_if(disks_, [&](const auto& p) { return p.get() == d; });
    auto left = std::make_shared<size_t>(1);
    const auto closed = [left, done = std::move(done)] {
        if (--*left == 0)
            done();
    };
    for (target* t : own) {
        if (!targets_.claimed(*t)) {
            ++*left;
            close_target(*t, closed);
        }
    }
    closed();
}

void server::resize_disk(const std::string& name, uint64_t bytes, completion done) {
    disk* d = find(name);
    if (!d)
        return done(error{"disk " + name + " does not exist"});
    d->resize(bytes, [name, bytes, done](result<void> ok) {
        if (ok)
            log_info("disk " + name + ": resized to " + std::to_string(bytes) + " bytes");
        done(std::move(ok));
    });
}

void server::stop(std::function<void()> done) {
    // Ends that are under way come first; but a VMM may have a disk open for ever.
    if (std::any_of(leaving_.begin(), leaving_.end(), [&](const std::string& name) {
            const disk* d = find(name);
            return d && !d->waits_for_vmm();
        }))
        return loop_.post([this, done] { stop(done); });
    auto left = std::make_shared<size_t>(disks_.size());
    if (disks_.empty())
        return done();
    for (auto& d : disks_)
        d->close([left, done] {
            if (--*left == 0)
                done();
        });
}

void server::once_a_second() {
    targets_.report_errors();
    controllers_->tick();
    targets_.look_at_namespaces([this](const target& t) {
        for (auto& d : disks_)
            d->target_changed(t);
    });
    for (auto& d : disks_)
        d->tick();
    // bpftool can attach to a function, but not raise a USDT probe's semaphore: its pins are one.
    trace_session.store(access((config_.bpf_dir + "/trace").c_str(), F_OK) == 0,
                        std::memory_order_relaxed);
    if (!guard_trips()) // nobody ever took memory away from us
        return;
    for (auto& d : disks_)
        d->check_memory();
}

} // namespace vql
