// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/disk.h"

#include "base/account.h"
#include "base/log.h"
#include "daemon/stats.h"
#include "ebpf/kernel_stats.h"
#include "frontend/vdpa.h"
#include "frontend/vhost_user.h"

#include <algorithm>
#include <span>
#include <utility>

namespace vql {

disk::disk(const disk_config& c, const std::string& socket, disk_services& services)
    : config_(c), socket_(socket), services_(services) {}

result<std::unique_ptr<disk>> disk::create(const disk_config& c, const std::string& socket,
                                           disk_services& services) {
    auto d = std::unique_ptr<disk>(new disk(c, socket, services));
    if (auto ok = d->set_up(); !ok)
        return ok.failure();
    return d;
}

result<void> disk::set_up() {
    auto v = plan_volume(config_, services_.targets);
    if (!v)
        return v.failure();
    if (auto ok = services_.targets.add_claims(v->parts); !ok)
        return ok;
    volume_ = std::move(*v);
    geometry_.id = disk_serial(config_);
    geometry_.sectors = volume_.bytes >> VQL_SECTOR_SHIFT;
    geometry_.block_bytes = volume_.block_bytes;
    geometry_.read_only = config_.read_only;
    geometry_.discard = volume_.discard;
    geometry_.queues = config_.queues;
    geometry_.queue_size = config_.queue_size;

    if (auto ok = take_slot(); !ok)
        return ok;
    auto stats =
        services_.maps.make_stats(*slot_, VQL_STATS_POLLERS + uint32_t(services_.pollers.size()));
    if (!stats)
        return stats.failure();
    stats_ = std::move(*stats);
    auto extents = services_.maps.make_extents(*slot_, volume_.chunks(), volume_.chunk_shift);
    if (!extents)
        return extents.failure();

    for (uint32_t i = 0; i < config_.queues; i++)
        queues_.push_back(std::make_unique<served_queue>());
    // In this order: with its claim a vDPA disk's queues leave the kernel lane, which knows an
    // earlier daemon's targets by their numbers.
    if (auto ok = open_frontend(); !ok)
        return ok;
    return apply_volume(volume_, std::move(*extents));
}

result<void> disk::take_slot() {
    auto slot = services_.maps.take_slot(config_.name);
    if (!slot)
        return slot.failure();
    slot_ = *slot;
    lives_on_ = services_.maps.inherited(*slot_);
    if (!lives_on_ || config_.frontend == frontend_type::vdpa)
        return {};
    // One over a socket ended with its daemon. What was counted then is not counted on.
    services_.maps.forget_disk(*slot_);
    return take_slot();
}

namespace {

result<socket_access> access_of(const disk_config& c) {
    socket_access access;
    access.mode = c.mode_of_socket();
    if (!c.socket_user.empty()) {
        auto user = user_id(c.socket_user);
        if (!user)
            return user.failure();
        access.user = *user;
    }
    if (!c.socket_group.empty()) {
        auto group = group_id(c.socket_group);
        if (!group)
            return group.failure();
        access.group = *group;
    }
    return access;
}

} // namespace

result<void> disk::set_access(const disk_config& c) {
    auto access = access_of(c);
    if (!access)
        return access.failure();
    if (auto ok = give_access(socket_, *access); !ok)
        return ok;
    config_.socket_mode = c.socket_mode;
    config_.socket_user = c.socket_user;
    config_.socket_group = c.socket_group;
    if (const std::string why = why_out_of_reach(socket_); !why.empty())
        log_warning("disk " + config_.name + ": " + why);
    return {};
}

result<void> disk::open_frontend() {
    if (config_.frontend == frontend_type::vdpa) {
        auto module = services_.module();
        if (!module)
            return error{"disk " + config_.name + ": " + module.failure().text};
        if (config_.lane != lane_mode::poll)
            services_.load_lane_programs();
        auto s = std::make_unique<vdpa_server>(services_.loop, *this, config_.name, lane());
        vdpa_server& opened = *s;
        server_ = std::move(s);
        if (auto ok = opened.open(**module); !ok)
            return ok;
        lives_on_ = true;
        return {};
    }
    auto access = access_of(config_);
    if (!access)
        return error{"disk " + config_.name + ": " + access.failure().text};
    auto s = std::make_unique<vhost_user_server>(services_.loop, *this, config_.name);
    vhost_user_server& opened = *s;
    server_ = std::move(s);
    if (auto ok = opened.listen(socket_, *access); !ok)
        return ok;
    if (const std::string why = why_out_of_reach(socket_); !why.empty())
        log_warning("disk " + config_.name + ": " + why);
    return {};
}

result<kmod_control*> disk_services::module() {
    if (!module_) {
        auto opened = kmod_control::open();
        if (!opened)
            return opened.failure();
        module_ = std::move(*opened);
    }
    return &*module_;
}

void disk_services::load_lane_programs() {
    if (std::exchange(lane_programs_loaded_, true))
        return;
    if (maps.active())
        if (auto ok = remap.load_default(); !ok)
            log_warning("requests are not remapped in the kernel: " + ok.failure().text);
    if (auto ok = attach_kernel_stats(maps); !ok)
        log_warning("the kernel lane's requests are not counted: " + ok.failure().text);
}

disk::~disk() {
    server_.reset();
    services_.targets.remove_claims(config_.name);
    stats_ = shared_array();
    extents_ = shared_array();
    if (slot_ && !lives_on_)
        services_.maps.forget_disk(*slot_);
}

// Take @v for the disk, whose table fits it. No queue is running, or none is there yet.
result<void> disk::apply_volume(volume v, shared_array extents) {
    const auto words = std::span(reinterpret_cast<uint64_t*>(extents.at(0)), extents.entries());
    write_extents(v, words);
    if (auto ok = services_.maps.publish_extents(*slot_, extents, v.chunk_shift); !ok)
        return ok;
    volume_ = std::move(v);
    extents_ = std::move(extents);
    table_ = {reinterpret_cast<const __u64*>(words.data()), volume_.chunks(), volume_.chunk_shift};
    geometry_.sectors = volume_.bytes >> VQL_SECTOR_SHIFT;
    return {};
}

void disk::set_policy(const std::string& file, std::function<void(result<void>)> done) {
    const std::string needs = "disk " + config_.name + ": a policy needs ";
    if (config_.frontend != frontend_type::vdpa)
        return done(error{needs + "frontend = \"vdpa\": it decides in the kernel module"});
    if (!file.empty() && config_.lane == lane_mode::poll)
        return done(error{needs + "lane = \"auto\" or \"kernel\": pollers have none"});
    if (!services_.maps.active())
        return done(error{needs + "BPF maps, which vqlaned could not make (its log says why)"});
    auto ok = file.empty() ? services_.remap.remove_policy(*slot_, config_.name)
                           : services_.remap.set_policy(*slot_, config_.name, file);
    if (!ok)
        return done(std::move(ok));
    log_info("disk " + config_.name + ": policy " +
             (file.empty() ? "removed" : policy() + ", from " + file));
    // What starts from now on has it. What runs was started without.
    server_->geometry_changes([done = std::move(done)] { done({}); });
}

void disk::close(std::function<void()> done) {
    server_->close(std::move(done));
}

void disk::remove(bool force, std::function<void(result<void>)> done) {
    if (force) { // what the guest still asks for is refused, also when a resize is under way
        alive_ = std::make_shared<bool>(true);
        for (uint32_t i = 0; i < extents_.entries(); i++)
            __atomic_store_n(reinterpret_cast<uint64_t*>(extents_.at(i)), 0, __ATOMIC_RELAXED);
    }
    server_->remove(force, [this, done = std::move(done)](result<void> ok) {
        if (ok)
            lives_on_ = false;
        done(std::move(ok));
    });
}

// The controllers that the disk has targets on.
std::vector<controller*> disk::controllers() const {
    std::vector<controller*> found;
    for (const target* t : volume_.targets) {
        if (t->kind != target_kind::nvme)
            continue;
        controller* const c = &services_.controllers.at(t->controller);
        if (std::find(found.begin(), found.end(), c) == found.end())
            found.push_back(c);
    }
    return found;
}

// Queues go round the pollers, each disk beginning one further on; but only round those that have a
// queue pair on each of the disk's controllers.
size_t disk::poller_index(uint32_t queue) const {
    size_t n = services_.pollers.size();
    for (const controller* c : controllers())
        n = std::min(n, c->lanes());
    return (*slot_ + queue) % n;
}

poller& disk::poller_of(const virtqueue& q) const {
    return *services_.pollers[poller_index(q.index)];
}

std::vector<int> disk::poller_cpus() const {
    std::vector<int> cpus;
    for (uint32_t i = 0; i < config_.queues; i++) {
        const int cpu = services_.pollers[poller_index(i)]->cpu();
        if (!cpus.empty() && cpu == cpus.front())
            break; // they have gone round
        cpus.push_back(cpu);
    }
    return cpus;
}

void disk::start_queue(virtqueue& vq) {
    served_queue& q = *queues_[vq.index];
    poller& p = poller_of(vq);
    q.vq = &vq;
    q.slot = *slot_;
    q.table = q.extents = table_;
    if (vq.policy)
        q.table.chunks = 0; // so that nothing is found in it
    q.targets = volume_.targets;
    q.dma.fill(nullptr);
    for (const controller* c : controllers())
        q.dma[c->index()] = c->view(*vq.memory, poller_index(vq.index));
    q.stats = reinterpret_cast<vql_disk_stats*>(stats_.at(VQL_STATS_POLLERS + p.index()));
    q.broken = [this, &vq] { server_->queue_broken(vq); };
    q.through = [this, &vq] { server_->queue_through(vq); };
    q.told_through = false;
    p.post([&p, &q] { p.add_queue(q); });
}

void disk::stop_queue(virtqueue& vq, std::function<void()> done) {
    served_queue& q = *queues_[vq.index];
    poller& p = poller_of(vq);
    p.post([&p, &q, done = std::move(done)]() mutable { p.remove_queue(q, std::move(done)); });
}

void disk::set_call(virtqueue& q, unique_fd call) {
    poller& p = poller_of(q);
    auto held = std::make_shared<unique_fd>(std::move(call)); // a function is copyable
    p.post([&p, &q, held] { p.set_call(q, std::move(*held)); });
}

// Pinned memory saves the kernel a look-up of pages in each request, at the price of all of it
// being resident: by default only where it is anyway, in huge pages, or for a controller's DMA.
result<void> disk::memory_mapped(guest_memory& m) {
    if (auto ok = map_for_dma(m); !ok)
        return ok;
    if (services_.registration == memory_registration::never || !m.pinnable())
        return {};
    const auto& regions = m.regions();
    for (size_t i = 0; i < regions.size(); i++) {
        if (services_.registration == memory_registration::automatic && !m.huge(i))
            continue;
        registered_.push_back(regions[i].host);
        for (auto& p : services_.pollers)
            p->post([p = p.get(), r = regions[i]] { p->add_memory(r.host, r.bytes); });
    }
    return {};
}

result<void> disk::map_for_dma(guest_memory& m) {
    const auto on = controllers();
    if (on.empty() || m.empty())
        return {};
    const kmod_mspace* space = m.space();
    if (!space) {
        auto module = services_.module();
        if (!module)
            return module.failure();
        auto made = (*module)->create_mspace(m.regions());
        if (!made)
            return made.failure();
        own_space_ = std::move(*made);
        space = &own_space_;
    }
    mapped_ = &m;
    for (controller* c : on)
        if (auto ok = c->attach(m, *space); !ok) {
            unmap_for_dma(m);
            return ok;
        }
    return {};
}

void disk::unmap_for_dma(guest_memory& m) {
    if (mapped_ != &m)
        return;
    for (controller* c : controllers())
        c->detach(m);
    mapped_ = nullptr;
    own_space_ = {};
}

void disk::memory_unmapped(guest_memory& m, std::function<void()> done) {
    unmap_for_dma(m);
    if (registered_.empty())
        return services_.loop.post(std::move(done));
    auto left = std::make_shared<size_t>(services_.pollers.size());
    for (auto& p : services_.pollers) {
        p->post([this, p = p.get(), bases = registered_, left, done] {
            for (uint8_t* base : bases)
                p->remove_memory(base);
            services_.loop.post([left, done] {
                if (--*left == 0)
                    done();
            });
        });
    }
    registered_.clear();
}

// ---- the kernel lane ----

lane_settings disk::lane() const {
    lane_settings s;
    s.mode = config_.lane;
    s.demote_iops = [this] { return services_.demote_iops; };
    s.plan = [this] { return lane_plan(); };
    s.has_policy = [this] { return !services_.remap.policy(*slot_).empty(); };
    return s;
}

// What requests may reach: the parts of targets that are the disk's, by target and place.
result<kmod_lane> disk::lane_plan() const {
    if (!services_.remap.active())
        return error{"no remap program is loaded"};
    kmod_lane lane;
    lane.slot = *slot_;
    lane.busy_iops = config_.lane == lane_mode::automatic ? services_.promote_iops : 0;
    const size_t n = std::min(lane.id.size(), geometry_.id.size());
    std::copy_n(geometry_.id.begin(), n, lane.id.begin());
    bool any = false;
    for (const claim& part : volume_.parts) {
        // What is offline stays with the pollers, which refuse it.
        const bool nvme = part.where->kind == target_kind::nvme && part.where->offline.empty();
        vql_lane_range r{};
        r.target = part.where->id;
        r.ctrl_fd = nvme ? services_.controllers.at(part.where->controller).fd() : -1;
        r.nsid = nvme ? part.where->nsid : 0;
        r.flags = nvme && config_.read_only ? VQL_RANGE_READ_ONLY : 0;
        r.sector = part.offset >> VQL_SECTOR_SHIFT;
        r.sectors = part.bytes >> VQL_SECTOR_SHIFT;
        lane.ranges.push_back(r);
        any |= nvme;
    }
    if (!any)
        return error{"none of its targets is an NVMe namespace"};
    std::sort(lane.ranges.begin(), lane.ranges.end(), [](const auto& a, const auto& b) {
        return std::pair(a.target, a.sector) < std::pair(b.target, b.sector);
    });
    return lane;
}

void disk::target_changed(const target& t) {
    if (std::any_of(volume_.parts.begin(), volume_.parts.end(),
                    [&](const claim& part) { return part.where == &t; }))
        server_->geometry_changes([] {});
}

vql_disk_stats disk::stats(vql_lane_kind lane) const {
    const bool kernel = lane == VQL_LANE_KERNEL;
    vql_disk_stats sum{};
    for (uint32_t i = kernel ? VQL_STATS_LANE : VQL_STATS_POLLERS;
         i < (kernel ? VQL_STATS_LANE + 1 : stats_.entries()); i++)
        add_stats(sum, *reinterpret_cast<const vql_disk_stats*>(stats_.at(i)));
    return sum;
}

// Is the disk one target from its beginning to its end, so that they grow together?
bool disk::has_whole_target() const {
    return config_.extents.size() == 1 && config_.extents[0].offset == 0 &&
           !config_.extents[0].length;
}

// What the disk needs to have @bytes, with nothing changed yet. @grown: its target will have at
// least so many.
result<std::shared_ptr<disk::growth>> disk::plan_growth(uint64_t bytes, uint64_t grown) {
    if (bytes < volume_.bytes) // by another resize, while this one waited for storage
        return error{"disk " + config_.name + " was resized to " + std::to_string(volume_.bytes) +
                     " bytes meanwhile; try again"};
    disk_config c = config_;
    c.bytes = bytes;
    c.chunk_bytes = 1ull << volume_.chunk_shift; // the table's words keep their meaning
    auto v = plan_volume(c, services_.targets, grown);
    if (!v)
        return v.failure();
    auto extents = services_.maps.make_extents(*slot_, v->chunks(), v->chunk_shift);
    if (!extents)
        return extents.failure();
    return std::make_shared<growth>(growth{volume_.bytes, std::move(*v), std::move(*extents)});
}

// Targets are looked at, then all is planned, then a file grows: what is refused before that has
// changed nothing, and what is refused after it no more than the file.
void disk::resize(uint64_t bytes, std::function<void(completion)> keep, completion done) {
    if (bytes < volume_.bytes)
        return done(error{"disk " + config_.name + ": cannot shrink from " +
                          std::to_string(volume_.bytes) + " to " + std::to_string(bytes) +
                          " bytes (its guest may have data there)"});
    if (bytes % volume_.block_bytes)
        return done(error{"disk " + config_.name + ": size is not a multiple of its blocks of " +
                          std::to_string(volume_.block_bytes) + " bytes"});
    if (!has_whole_target()) {
        auto planned = plan_growth(bytes, 0);
        return planned ? keep_growth(*planned, keep, std::move(done)) : done(planned.failure());
    }
    grow_target_to(
        0, [this, bytes, keep = std::move(keep), done = std::move(done)](result<void> looked) {
            if (!looked)
                return done(std::move(looked));
            auto planned = plan_growth(bytes, can_grow(*volume_.targets[0]) ? bytes : 0);
            if (!planned)
                return done(planned.failure());
            grow_target_to(bytes, [this, planned = *planned, keep, done](result<void> grown) {
                grown ? keep_growth(planned, keep, done) : done(std::move(grown));
            });
        });
}

// Have the disk's one target looked at and, if it has fewer bytes and can, grown. @done with an
// error also when the disk has ended meanwhile: then nothing of it is to be used.
void disk::grow_target_to(uint64_t bytes, completion done) {
    services_.keeper.grow(*volume_.targets[0], bytes,
                          [name = config_.name, alive = std::weak_ptr(alive_),
                           done = std::move(done)](result<uint64_t> usable) {
                              if (alive.expired())
                                  return done(error{"disk " + name + " was removed meanwhile"});
                              if (!usable)
                                  return done(error{"disk " + name + ": " + usable.failure().text});
                              done({});
                          });
}

// What another disk claims meanwhile is not ours: so claims come before @keep.
void disk::keep_growth(const std::shared_ptr<growth>& to,
                       const std::function<void(completion)>& keep, completion done) {
    if (auto ok = claim_parts(to->planned); !ok)
        return done(std::move(ok));
    if (!keep)
        return grow(to, std::move(done));
    keep([this, to, name = config_.name, alive = std::weak_ptr(alive_),
          done = std::move(done)](result<void> kept) {
        if (alive.expired())
            return done(error{"disk " + name + " was removed meanwhile"});
        if (kept)
            return grow(to, done);
        [[maybe_unused]] auto back = claim_parts(volume_);
        done(std::move(kept));
    });
}

// The queues stand still while table and capacity change under them.
void disk::grow(const std::shared_ptr<growth>& to, completion done) {
    server_->geometry_changes([this, to, alive = std::weak_ptr(alive_), done = std::move(done)] {
        if (alive.expired())
            return done(error{"disk " + config_.name + " was removed meanwhile"});
        if (volume_.bytes != to->was) { // by another resize, which asked first
            [[maybe_unused]] auto back = claim_parts(volume_);
            return done(error{"disk " + config_.name + " was resized to " +
                              std::to_string(volume_.bytes) + " bytes meanwhile; try again"});
        }
        auto ok = apply_volume(std::move(to->planned), std::move(to->extents));
        if (ok)
            config_.bytes = volume_.bytes;
        else [[maybe_unused]]
            auto back = claim_parts(volume_);
        done(std::move(ok));
    });
}

// The parts of @v are the disk's, in place of those of its volume. After an error it has these.
result<void> disk::claim_parts(const volume& v) {
    services_.targets.remove_claims(config_.name);
    auto ok = services_.targets.add_claims(v.parts);
    if (!ok) [[maybe_unused]]
        auto back = services_.targets.add_claims(volume_.parts);
    return ok;
}

} // namespace vql
