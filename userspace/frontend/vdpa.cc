// SPDX-License-Identifier: GPL-2.0-only
#include "frontend/vdpa.h"

#include "base/log.h"

#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <linux/virtio_config.h>
#include <span>
#include <sys/epoll.h>

namespace vql {

namespace {

kmod_disk_shape shape_of(const blk_geometry& g) {
    kmod_disk_shape s;
    s.features = blk_features(g) & VQL_DISK_FEATURES;
    s.queues = g.queues;
    s.queue_size = g.queue_size;
    const virtio_blk_config c = blk_config(g, true);
    std::memcpy(s.config.data(), &c, std::min(sizeof(c), s.config.size()));
    return s;
}

virtio_blk_config config_of(const kmod_disk_shape& s) {
    virtio_blk_config c{};
    std::memcpy(&c, s.config.data(), std::min(sizeof(c), s.config.size()));
    return c;
}

std::string number(uint64_t n, const char* what) {
    return std::to_string(n) + " " + what;
}

// In what a disk that exists differs from the one that is wanted, where a driver cannot be told of
// it; or nothing.
struct difference {
    std::string is, wanted;
};
std::optional<difference> find_difference(const kmod_disk_shape& is,
                                          const kmod_disk_shape& wanted) {
    const virtio_blk_config a = config_of(is), b = config_of(wanted);
    if (is.queues != wanted.queues)
        return difference{number(is.queues, "queues"), number(wanted.queues, "queues")};
    if (is.queue_size != wanted.queue_size)
        return difference{number(is.queue_size, "entries a queue"),
                          number(wanted.queue_size, "entries a queue")};
    if (a.blk_size != b.blk_size)
        return difference{number(a.blk_size, "bytes a block"), number(b.blk_size, "bytes a block")};
    const uint64_t changed = is.features ^ wanted.features;
    if (changed & 1ull << VIRTIO_BLK_F_RO)
        return is.features & 1ull << VIRTIO_BLK_F_RO
                   ? difference{"no write access", "write access"}
                   : difference{"write access", "no write access"};
    if (changed & 1ull << VIRTIO_BLK_F_DISCARD)
        return is.features & 1ull << VIRTIO_BLK_F_DISCARD ? difference{"discard", "no discard"}
                                                          : difference{"no discard", "discard"};
    if (changed)
        return difference{"other features", "those of this version of vqlaned"};
    if (a.capacity > b.capacity) // its driver may have data there
        return difference{number(a.capacity, "sectors"), number(b.capacity, "sectors")};
    return std::nullopt;
}

} // namespace

vdpa_server::vdpa_server(event_loop& loop, queue_host& host, std::string name, lane_settings lane)
    : frontend(loop, host, std::move(name)), lane_(std::move(lane)) {
    for (uint32_t i = 0; i < host_.geometry().queues; i++) {
        rings_.push_back(std::make_unique<vdpa_ring>());
        rings_.back()->vq.index = i;
    }
}

vdpa_server::~vdpa_server() {
    unwatch();
}

void vdpa_server::unwatch() {
    if (watching_)
        loop_.remove(disk_.fd());
    watching_ = false;
}

result<void> vdpa_server::open(kmod_control& module) {
    if (auto ok = claim(module); !ok)
        return ok;
    loop_.add(disk_.fd(), EPOLLIN, [this](uint32_t) { look(); });
    watching_ = true;
    if (address().front() != '/')
        log_warning("disk " + name_ + ": " + address() +
                    " has no /dev/vhost-vdpa-N yet, which a VMM needs: modprobe vhost_vdpa");
    return {}; // a new claim has its state to tell, so the loop looks at once
}

result<void> vdpa_server::claim(kmod_control& module) {
    const kmod_disk_shape wanted = shape_of(host_.geometry());
    auto claimed = module.claim(name_);
    if (!claimed)
        return claimed.failure();
    if (*claimed) {
        disk_ = std::move(**claimed);
        // What an earlier daemon has told the kernel lane, in its own numbers, counts no more.
        if (auto ok = disk_.set_lane({}); !ok)
            return ok.failure();
        const auto differs = find_difference(disk_.shape(), wanted);
        if (!differs) // but it may have grown
            return disk_.shape().config == wanted.config ? result<void>()
                                                         : disk_.set_config(wanted.config);
        auto gone = disk_.remove(false);
        if (!gone)
            return gone.failure();
        if (!*gone)
            return error{"disk " + name_ + " exists in the kernel module with " + differs->is +
                         ", is configured with " + differs->wanted + ", and a VMM has " +
                         address() + " open: configure it as it is, or end that guest first"};
        disk_ = {};
        log_info("disk " + name_ + ": recreated with " + differs->wanted + " (was " + differs->is +
                 ")");
    }
    auto created = module.create(name_, wanted);
    if (!created)
        return created.failure();
    disk_ = std::move(*created);
    return {};
}

std::string vdpa_server::address() const {
    const std::string device = "vqlane-" + name_, node = "vhost-vdpa-";
    std::error_code none; // not there: as good as empty
    for (const auto& entry :
         std::filesystem::directory_iterator("/sys/bus/vdpa/devices/" + device, none)) {
        const std::string found = entry.path().filename();
        if (found.starts_with(node))
            return "/dev/" + found;
    }
    return device;
}

// ---- the lease ----

// What the module says now, and what follows from it.
void vdpa_server::look() {
    if (!disk_)
        return; // closed
    auto now = disk_.state();
    if (!now)
        return ended(now.failure().text);
    state_ = *now;
    if (busy_)
        return; // and then we look again
    constexpr uint32_t ours = VQL_DISK_LEASED | VQL_DISK_RUNNABLE;
    if (leased_) {
        if (state_.flags & VQL_DISK_REVOKED)
            say(log_level::warning,
                ": the kernel module took the guest's memory back before what was in flight had "
                "ended; it is finished later");
        if ((state_.flags & ours) != ours || state_.flags & VQL_DISK_RECALL)
            let_go([this] { look(); });
        else
            look_at_lent();
        return;
    }
    if (!(state_.status & VIRTIO_CONFIG_S_NEEDS_RESET)) { // it was reset, if it had to be
        refused_ = false;
        for (auto& r : rings_)
            r->vq.ring_error = VQL_RING_OK;
    }
    if (state_.flags & VQL_DISK_RUNNABLE && !refused_)
        acquire();
}

// The disk is no more.
void vdpa_server::ended(const std::string& why) {
    unwatch(); // it would tell so for ever
    state_ = {};
    if (busy_)
        return;
    if (removed_)
        loop_.post([done = std::exchange(removed_, nullptr)] { done({}); });
    else
        log_error(why);
}

void vdpa_server::acquire() {
    auto space = disk_.acquire(state_.epoch);
    if (space && !*space)
        return; // things have moved on, and the module tells of it
    leased_ = true;
    dirty_ = state_.flags & VQL_DISK_DIRTY;
    if (!space)
        return refuse(space.failure().text);
    if (auto ok = take_memory(std::move(**space)); !ok)
        return refuse(ok.failure().text);
    if (auto ok = take_rings(); !ok)
        return refuse(ok.failure().text);
    prepare_lane();
    run_rings();
    say(log_level::debug, ": serves " + std::to_string(queues_running()) + " queues");
}

result<void> vdpa_server::take_memory(kmod_mspace space) {
    auto record = disk_.map_inflight();
    if (!record)
        return record.failure();
    record_ = std::make_unique<inflight_region>();
    const kmod_disk_shape& shape = disk_.shape();
    if (auto ok = record_->adopt(std::move(*record), shape.queues, shape.queue_size); !ok)
        return ok;
    if (auto ok = memory_.add(std::move(space)); !ok)
        return ok;
    return host_.memory_mapped(memory_);
}

result<void> vdpa_server::take_rings() {
    for (auto& r : rings_) {
        auto q = disk_.queue(r->vq.index);
        if (!q)
            return q.failure();
        r->set_up = *q;
        r->base = uint16_t(q->next_avail);
        // VMMs make queues ready that their driver does not use: these have no entries.
        r->set_up.ready = q->ready && q->num;
        r->lent = q->flags & VQL_QUEUE_LENT;
        r->dirty = q->flags & VQL_QUEUE_DIRTY;
        r->taking = false;
        if (!r->set_up.ready)
            continue;
        // One bell, for both directions.
        auto bell = disk_.queue_fd(r->vq.index);
        if (!bell)
            return bell.failure();
        r->vq.kick = std::move(*bell);
        r->vq.call.reset(fcntl(r->vq.kick.get(), F_DUPFD_CLOEXEC, 0));
        if (!r->vq.call)
            return errno_error("the bell of queue " + std::to_string(r->vq.index), errno);
    }
    return {};
}

// Start what is set up and stands still. This is the only place that starts a queue.
void vdpa_server::run_rings() {
    size_t resubmitted = 0;
    for (auto& r : rings_) {
        if (!leased_ || r->running || r->lent || !r->set_up.ready || r->vq.ring_error)
            continue;
        if (lend(*r))
            continue;
        if (lane_.has_policy() && !lane_ready_) {
            r->why = "its policy cannot be asked, so nobody serves it";
            continue;
        }
        if (auto ok = prepare_ring(*r); !ok) {
            r->vq.ring_error = VQL_RING_BAD_ADDRESS;
            broken("queue " + std::to_string(r->vq.index) + ": " + ok.failure().text);
            continue;
        }
        resubmitted += r->vq.resubmit.size();
        r->limited = obliged() && lane_ready_; // the module's, but for this
        if (r->limited)
            r->vq.limit = r->dirty || dirty_ ? 0 : 1;
        r->dirty = false;
        r->served = true;
        r->vq.policy = nullptr;
        if (lane_.has_policy())
            r->vq.policy = [this, i = r->vq.index](vql_op op, uint64_t sector, uint64_t sectors) {
                return ask_policy(i, op, sector, sectors);
            };
        start_ring(*r);
    }
    if (dirty_)
        log_info("disk " + name_ + ": taken over, with " + std::to_string(resubmitted) +
                 " requests that were in flight");
    dirty_ = false; // from now on, the rings themselves tell
}

result<void> vdpa_server::prepare_ring(vdpa_ring& r) {
    const vql_disk_queue& q = r.set_up;
    if (!vql_queue_size_valid(q.num) || q.num > disk_.shape().queue_size)
        return error{"ring of " + std::to_string(q.num) + " entries"};
    ring_setup s;
    s.desc = memory_.from_guest(q.desc, vql_desc_bytes(q.num), false);
    s.avail = memory_.from_guest(q.avail, vql_avail_bytes(q.num), false);
    s.used = memory_.from_guest(q.used, vql_used_bytes(q.num), true);
    s.num = q.num;
    s.next_avail = r.base;
    s.features = state_.features;
    s.writeback = state_.writeback;
    s.record = record_->queue(r.vq.index);
    s.taken_over = dirty_ || r.dirty;
    return prepare_queue(r.vq, s, memory_, host_.geometry());
}

// The disk cannot be served as it is set up.
void vdpa_server::refuse(const std::string& why) {
    refused_ = true;
    broken("not served: " + why);
    let_go([this] { look(); });
}

void vdpa_server::broken(const std::string& what) {
    trouble_ = what;
    say(log_level::warning, " " + what);
    if (auto ok = disk_.broken(); !ok)
        say_line(log_level::warning, ok.failure().text);
}

// End the lease: stop the queues, give back all that came with it, then @then.
void vdpa_server::let_go(std::function<void()> then) {
    if (!leased_)
        return then();
    stop_then(all_rings(), [this, then = std::move(then)] {
        busy_ = true;
        host_.memory_unmapped(memory_, [this, then] {
            idle_then([this, then] {
                yield();
                then();
            });
        });
    });
}

void vdpa_server::yield() {
    std::vector<uint32_t> next_avail;
    for (auto& r : rings_) {
        next_avail.push_back(std::exchange(r->served, false) ? r->base : VQL_YIELD_UNTOUCHED);
        r->vq.inflight = {};
        r->vq.kick.reset();
        r->vq.call.reset();
    }
    record_.reset();
    memory_.clear();
    leased_ = false;
    auto now = disk_.state();
    if (!now || !(now->flags & VQL_DISK_LEASED))
        return; // it was taken back already
    if (auto ok = disk_.yield(next_avail); !ok)
        say_line(log_level::warning, ok.failure().text);
}

std::vector<frontend::ring_state*> vdpa_server::all_rings() {
    std::vector<ring_state*> all;
    for (auto& r : rings_)
        all.push_back(r.get());
    return all;
}

// ---- what the daemon asks for ----

void vdpa_server::close(std::function<void()> done) {
    if (busy_) {
        when_idle_.push_back([this, done] { close(done); });
        return;
    }
    // A claim has taken the queues from the kernel lane. One that is as new as that has to be
    // looked at once, for only with the lease can they be given back.
    if (!leased_ && watching_)
        look();
    finish(std::move(done));
}

void vdpa_server::finish(std::function<void()> done) {
    if (busy_) {
        when_idle_.push_back([this, done] { finish(done); });
        return;
    }
    unwatch();
    stop_then(all_rings(), [this, done] {
        leave_to_kernel();
        let_go([this, done] {
            disk_ = {};
            state_ = {};
            loop_.post(done); // not from within: @done may destroy us
        });
    });
}

void vdpa_server::remove(bool force, std::function<void(result<void>)> done) {
    if (busy_) {
        when_idle_.push_back([this, force, done] { remove(force, done); });
        return;
    }
    auto gone = disk_.remove(false);
    if (gone && *gone)
        return finish([done = std::move(done)] { done({}); });
    if (gone && !force)
        return done(error{"disk " + name_ + ": a VMM has " + address() +
                          " open; detach it there first, or remove the disk with --force"});
    if (gone)
        gone = disk_.remove(true);
    if (!gone)
        return done(gone.failure());
    log_info("disk " + name_ + ": is removed when its guest lets go of it");
    removed_ = std::move(done);
    look();
}

void vdpa_server::geometry_changes(std::function<void()> change) {
    if (busy_) {
        when_idle_.push_back([this, change] { geometry_changes(change); });
        return;
    }
    if (leased_ && any_lent()) {
        when_back_.push_back([this, change] { geometry_changes(change); });
        look_at_lent();
        return;
    }
    stop_then(all_rings(), [this, change] {
        change();
        if (!disk_)
            return; // closed meanwhile
        if (auto ok = disk_.set_config(shape_of(host_.geometry()).config); !ok)
            say_line(log_level::warning, ok.failure().text);
        lane_ready_ = false;
        prepare_lane();
        place_again();
    });
}

void vdpa_server::queue_broken(virtqueue& q) {
    const int error = vql_read_once(&q.ring_error);
    if (!leased_ || !error) // set up anew meanwhile
        return;
    if (memory_.lost()) { // what looked like a ring was not the driver's
        q.ring_error = VQL_RING_OK;
        return;
    }
    broken("queue " + std::to_string(q.index) + ": stopped: " + vql_ring_error_text(error));
}

std::string vdpa_server::problem() const {
    const bool broken = std::any_of(rings_.begin(), rings_.end(), [](const auto& r) {
        return vql_read_once(&r->vq.ring_error) != VQL_RING_OK;
    });
    return refused_ || broken ? trouble_ : std::string();
}

// The module says itself when it has taken memory away.
void vdpa_server::check_memory() {}

// ---- lanes ----

// Is the poll lane for single requests only?
bool vdpa_server::obliged() const {
    return lane_.mode == lane_mode::kernel ||
           (lane_.mode == lane_mode::automatic && lane_.has_policy());
}

// Tell the module what the disk may reach, if it does not know.
void vdpa_server::prepare_lane() {
    if (lane_.mode == lane_mode::poll || lane_ready_ || !leased_)
        return;
    auto plan = lane_.plan();
    const result<bool> ok = plan ? disk_.set_lane(*plan) : result<bool>(plan.failure());
    lane_ready_ = ok && *ok;
    lane_later_ = ok && !*ok; // tick() tries again: nothing is told when the reset is over
    if (lane_later_)
        lane_refusal_ = "a controller of its targets is being reset";
    if (!ok && ok.failure().text != lane_refusal_) {
        lane_refusal_ = ok.failure().text;
        const std::string what = "disk " + name_ + ": served by pollers only: " + lane_refusal_;
        if (lane_.mode == lane_mode::kernel)
            log_warning(what);
        else
            log_info(what);
    }
}

// Hand @r, which stands still, to the module, where that is its place now.
bool vdpa_server::lend(vdpa_ring& r) {
    if (!lane_ready_ || !when_back_.empty() || dirty_ || r.dirty ||
        r.vq.limit != virtqueue::no_limit)
        return false;
    if (!obliged() && !r.choice.kernel())
        return false;
    const auto ok = disk_.lend(r.vq.index, r.base);
    if (!ok) {
        say_line(log_level::warning, ok.failure().text);
        lane_ready_ = false; // until something changes
        lane_refusal_ = ok.failure().text;
        return false;
    }
    if (!*ok)
        return false;
    r.lent = true;
    r.taking = r.served = false;
    r.why = "little to do";
    if (obliged())
        r.why = lane_.mode == lane_mode::kernel ? "as configured" : "has a policy";
    return true;
}

// No poller will serve them: all queues that the module can serve are its own, much to do or not.
void vdpa_server::leave_to_kernel() {
    for (auto& r : rings_) {
        if (!leased_ || r->lent || !r->set_up.ready || r->vq.ring_error)
            continue;
        r->vq.limit = virtqueue::no_limit;
        r->choice = {};
        lend(*r);
    }
}

// The module knows the policy, and what the disk has a right to. On a poller's thread: touches
// nothing but the claim, which outlives running queues.
policy_answer vdpa_server::ask_policy(uint32_t index, vql_op op, uint64_t sector,
                                      uint64_t sectors) const {
    const auto says = disk_.remap(index, op, sector, sectors);
    if (!says)
        return {{VQL_REFUSE, 0, 0, 0}, VQL_STATUS_IOERR};
    return {{says->verdict, says->target, says->target_sector, says->target_sectors},
            uint8_t(says->status)};
}

bool vdpa_server::any_lent() const {
    return std::any_of(rings_.begin(), rings_.end(), [](const auto& r) { return r->lent; });
}

namespace {

const char* returned_text(uint32_t why) {
    switch (why) {
    case VQL_RETURNED_TAKEN: return "much to do";
    case VQL_RETURNED_VERDICT: return "a request that the kernel lane leaves to the daemon";
    case VQL_RETURNED_SHAPE: return "a request of a shape that the kernel lane does not serve";
    case VQL_RETURNED_LOST: return "a controller lost what was in flight";
    case VQL_RETURNED_START: return "the kernel lane could not begin";
    default: return "";
    }
}

} // namespace

// What has become of the queues that are lent?
void vdpa_server::look_at_lent() {
    for (auto& r : rings_) {
        if (!r->lent)
            continue;
        auto q = disk_.queue(r->vq.index);
        if (!q) {
            say_line(log_level::warning, q.failure().text);
            continue;
        }
        if (!(q->flags & VQL_QUEUE_LENT)) {
            r->lent = r->taking = false;
            r->base = uint16_t(q->next_avail);
            r->set_up = *q;
            r->set_up.ready = q->ready && q->num;
            r->dirty = q->flags & VQL_QUEUE_DIRTY;
            r->why = returned_text(q->returned);
            r->vq.limit = virtqueue::no_limit;
            r->choice.promote();
            if (obliged()) // it has been in the kernel lane: this one request is ours
                r->vq.limit = r->dirty ? 0 : 1;
        } else if (!r->taking &&
                   (!when_back_.empty() || (q->flags & VQL_QUEUE_BUSY && !obliged()))) {
            r->taking = bool(disk_.take(r->vq.index));
        }
    }
    if (!when_back_.empty() && !any_lent()) {
        auto waiting = std::move(when_back_);
        when_back_.clear();
        for (auto& w : waiting)
            w();
        return;
    }
    run_rings();
}

// Stop them, and see where their place is now.
void vdpa_server::lend_again(std::vector<ring_state*> rings) {
    if (busy_ || !leased_ || rings.empty())
        return;
    stop_then(std::move(rings), [this] { place_again(); });
}

// Those that stand still go where their place is now.
void vdpa_server::place_again() {
    for (auto& r : rings_)
        if (!r->running)
            r->vq.limit = virtqueue::no_limit;
    if (leased_)
        run_rings();
    look();
}

void vdpa_server::queue_through(virtqueue& q) {
    if (busy_) {
        when_idle_.push_back([this, &q] { queue_through(q); });
        return;
    }
    for (auto& r : rings_)
        if (&r->vq == &q && r->running)
            lend_again({r.get()});
}

void vdpa_server::tick() {
    frontend::tick();
    if (!leased_ || busy_ || lane_.mode == lane_mode::poll)
        return;
    if (!lane_ready_) {
        if (!lane_later_ && !lane_.has_policy()) // one with a policy is served by nobody
            return;
        prepare_lane();
        run_rings();
        if (!lane_ready_)
            return;
    }
    std::vector<ring_state*> to_lend;
    for (auto& r : rings_) {
        const uint64_t now = vql_read_once(&r->vq.answered);
        const uint64_t since = now - std::exchange(r->answered, now);
        if (!r->running)
            continue;
        r->choice.tick(since, lane_.demote_iops());
        // Those that serve a single request end by themselves.
        if (obliged() ? !r->limited : r->choice.kernel())
            to_lend.push_back(r.get());
    }
    lend_again(std::move(to_lend));
}

frontend::lane_report vdpa_server::lane_of(uint32_t index) const {
    const vdpa_ring& r = *rings_.at(index);
    // Without a lease, only what the module says counts.
    const bool lent = leased_ && r.lent;
    lane_report report{lent ? "kernel" : r.running ? "poll" : "none", leased_ ? r.why : "", 0, 0};
    if (!lent && lane_.mode != lane_mode::poll && !lane_ready_ && !lane_refusal_.empty())
        report.why = lane_refusal_;
    if (!lent && lane_.mode == lane_mode::poll)
        report.why = "as configured";
    if (disk_)
        if (auto q = disk_.queue(index); q) {
            report.served = q->served;
            report.refused = q->refused;
            // One that is lent by nobody who is alive is served as well.
            if (!leased_ && q->flags & VQL_QUEUE_LENT)
                report.lane = "kernel";
        }
    return report;
}

} // namespace vql
