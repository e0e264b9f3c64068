// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/controllers.h"

#include "base/log.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <sys/file.h>
#include <unistd.h>
#include <utility>

namespace vql {

namespace {

// Commands under way on one queue pair, and pages for bouncing what neither PRP nor SGL can
// express, besides one for each command's list.
constexpr uint32_t queue_depth = 512;
constexpr uint32_t bounce_pages = 128;
// How long the queue pairs of a dead daemon may take to go, and how often a lost one is tried
// again; and how long those may take of a controller that is opened while guests are served.
constexpr int wait_s = 30, short_wait_s = 1;

std::string text_of(const char* field, size_t bytes) { // NVMe 2.0 §1.4: padded with spaces
    std::string s(field, strnlen(field, bytes));
    s.erase(s.find_last_not_of(' ') + 1);
    return s;
}

} // namespace

result<std::unique_ptr<controller>> controller::open(const std::string& bdf, uint32_t index,
                                                     bool allow_untranslated, bool patient,
                                                     size_t pollers, event_loop& loop) {
    auto c = std::unique_ptr<controller>(new controller(bdf, index, loop));
    if (auto ok = c->take(allow_untranslated, patient); !ok)
        return ok.failure();
    if (auto ok = c->open_lanes(pollers); !ok)
        return ok.failure();
    log_info("controller " + bdf + ": " + text_of(c->info_.model, sizeof(c->info_.model)) +
             ", serial " + text_of(c->info_.serial, sizeof(c->info_.serial)) + ", " +
             std::to_string(c->lanes()) + " queue pairs of " + std::to_string(queue_depth));
    return c;
}

controller::~controller() {
    if (rescuer_.joinable())
        rescuer_.join();
}

controller::guarded_pair::~guarded_pair() {
    for (int g : guards)
        remove_guard(g);
}

result<void> controller::take(bool allow_untranslated, bool patient) {
    auto device = kmod_ctrl::open(bdf_);
    if (!device)
        return device.failure();
    device_ = std::make_shared<const kmod_ctrl>(std::move(*device));
    // One daemon at a time, and not before the queue pairs of a dead one are gone: a command of its
    // that lands late would undo a newer one.
    for (int waited = 0;; waited++) {
        const bool locked = flock(device_->fd(), LOCK_EX | LOCK_NB) == 0;
        auto now = device_->info();
        if (!now)
            return now.failure();
        info_ = *now;
        if (info_.state == VQL_CTRL_DEAD)
            return error{"controller " + bdf_ + " has failed or was taken away (see dmesg); " +
                         "vqlane device unbind and bind it again"};
        if (locked && info_.state == VQL_CTRL_LIVE &&
            info_.free_qpairs + info_.own_qpairs == info_.max_qpairs)
            break;
        if (waited == (patient ? wait_s : short_wait_s) * 100)
            return error{"controller " + bdf_ +
                         (info_.state == VQL_CTRL_RESETTING ? " is still being reset"
                                                            : " is in use by another process")};
        if (waited == 100)
            log_warning("controller " + bdf_ + ": waiting for another process to let go of it");
        usleep(10000);
    }
    if (!(info_.flags & VQL_CTRL_TRANSLATED) && !allow_untranslated)
        return error{
            "controller " + bdf_ +
            " is behind no IOMMU, or one in passthrough: whoever takes over this daemon could make "
            "the drive write to any memory of the host. Or the IOMMU invalidates lazily (group "
            "type "
            "DMA-FQ), so that it could write to memory that was just let go: vqlane device bind "
            "makes it strict. Enable translation (kernel parameter "
            "intel_iommu=on or amd_iommu=on, and iommu=nopt), or accept that with "
            "allow_untranslated_dma = true in [daemon]"};
    return {};
}

result<void> controller::open_lanes(size_t pollers) {
    // A kernel lane that has outlived its daemon has one.
    const size_t n = std::min<size_t>(pollers, info_.free_qpairs);
    if (!n)
        return error{"controller " + bdf_ + " has no queue pair left: the kernel lane has " +
                     std::to_string(info_.own_qpairs)};
    if (n < pollers)
        log_info("controller " + bdf_ + " has " + std::to_string(n) + " queue pairs left: of " +
                 std::to_string(pollers) + " pollers only the first " + std::to_string(n) +
                 " serve its disks");
    for (size_t i = 0; i < n; i++) {
        auto l = std::make_unique<lane>();
        auto pair = make_pair();
        if (!pair)
            return pair.failure();
        l->pair = std::move(*pair);
        if (auto ok = l->served.engine.open(queue_of(*l->pair)); !ok)
            return ok;
        l->served.fd = l->pair->pair.fd();
        l->served.has_interrupt = l->pair->pair.has_interrupt();
        l->served.arm = [p = l->pair] { p->pair.arm(); };
        l->served.lost = [this, raw = l.get()] { lane_lost(*raw); };
        l->served.overdue = [this, raw = l.get()](std::vector<uint16_t> cids) {
            overdue(*raw, std::move(cids));
        };
        lanes_.push_back(std::move(l));
    }
    return {};
}

void controller::start(const std::vector<std::unique_ptr<poller>>& pollers) {
    for (size_t i = 0; i < lanes_.size(); i++) {
        lane* l = lanes_[i].get();
        l->on = pollers[i].get();
        l->on->post([this, l] { l->on->add_nvme(l->served, index_); });
    }
}

result<std::shared_ptr<controller::guarded_pair>> controller::make_pair() {
    const uint32_t depth = std::min(queue_depth, info_.max_depth);
    auto pair = device_->create_qpair(depth, depth + bounce_pages);
    if (!pair)
        return pair.failure();
    auto p = std::make_shared<guarded_pair>();
    p->pair = std::move(*pair);
    for (const auto& [base, bytes] : p->pair.revocable()) {
        const int g = add_guard(base, bytes);
        if (g < 0)
            return error{"controller " + bdf_ + ": too many shared mappings in the daemon"};
        p->guards.push_back(g);
    }
    return p;
}

nvme_queue controller::queue_of(const guarded_pair& p) const {
    nvme_queue q = p.pair.queue();
    q.sgl = (info_.sgls & 3) == 1; // NVMe 2.0 figure 275: 01b = supported, no alignment asked for
    q.volatile_cache = info_.volatile_cache;
    q.limits = vql_nvme_limits_of(info_.max_transfer, info_.wzsl, info_.dmrsl, info_.dmsl);
    std::copy(std::begin(info_.crdt), std::end(info_.crdt), std::begin(q.crdt));
    q.write_zeroes = info_.oncs & 1u << 3;
    q.discard = info_.oncs & 1u << 2;
    return q;
}

result<void> controller::attach(const guest_memory& memory, const kmod_mspace& space) {
    for (auto& l : lanes_) {
        auto a = std::make_shared<attachment>();
        a->memory = &memory;
        a->space = &space;
        // A lost lane gets its tables when it is replaced; until then nothing is submitted there.
        // Lost while nothing was under way on it, so that its poller has not noticed yet:
        if (l->pair->lost())
            lane_lost(*l);
        auto table = l->pair->pair.attach(space);
        if (!table) {
            detach(memory);
            return error{"controller " + bdf_ + ": " + table.failure().text};
        }
        if (*table) {
            a->table = std::move(**table);
            a->view = make_dma_view(memory.regions(), a->table.words());
        } else if (!l->lost) { // since a moment ago
            l->lost = true;
            l->tries = 0;
        }
        l->attachments.push_back(std::move(a));
    }
    return {};
}

void controller::detach(const guest_memory& memory) {
    for (auto& l : lanes_)
        std::erase_if(l->attachments, [&](const auto& a) {
            if (a->memory != &memory)
                return false;
            if (!l->lost && a->table)
                l->pair->pair.detach(a->table);
            return true;
        });
}

const dma_view* controller::view(const guest_memory& memory, size_t on_poller) const {
    if (on_poller >= lanes_.size())
        return nullptr;
    for (const auto& a : lanes_[on_poller]->attachments)
        if (a->memory == &memory)
            return &a->view;
    return nullptr;
}

void controller::close(std::function<void()> done) {
    closing_ = true;
    auto left = std::make_shared<size_t>(lanes_.size());
    if (lanes_.empty())
        return loop_.post(std::move(done));
    for (auto& l : lanes_)
        l->on->post([raw = l.get(), left, done] {
            raw->on->remove_nvme(raw->served, [left, done] {
                if (--*left == 0)
                    done();
            });
        });
}

void controller::lane_lost(lane& l) {
    // It may have been replaced between the poller's look and now.
    if (closing_ || l.lost || !l.pair->lost())
        return;
    l.lost = true;
    l.tries = 0;
    recover(l);
}

// A new queue pair in place of a lost one, when the controller has one to give.
void controller::recover(lane& l) {
    auto now = device_->info();
    if (!now || now->state == VQL_CTRL_DEAD)
        return give_up(l, "it failed, or was taken away");
    if (now->state == VQL_CTRL_RESETTING)
        return; // tick() comes back
    auto pair = make_pair();
    if (!pair) {
        if (++l.tries > wait_s)
            give_up(l, pair.failure().text);
        return;
    }
    std::vector<kmod_dma_table> tables; // of attachments; none where memory was fenced
    for (auto& a : l.attachments) {
        auto table = (*pair)->pair.attach(*a->space);
        if (table && !*table)
            return; // lost again: tick() comes back
        tables.push_back(table ? std::move(**table) : kmod_dma_table{});
    }
    struct news {
        std::shared_ptr<guarded_pair> old_pair;
        std::vector<kmod_dma_table> old_tables;
        std::vector<std::pair<std::shared_ptr<attachment>, dma_view>> views;
    };
    auto n = std::make_shared<news>();
    for (size_t i = 0; i < tables.size(); i++) {
        const auto& a = l.attachments[i];
        n->old_tables.push_back(std::exchange(a->table, std::move(tables[i])));
        // Memory that was fenced is gone: its owner is about to drop it, and what is submitted
        // there fails.
        n->views.emplace_back(a, a->table ? make_dma_view(a->memory->regions(), a->table.words())
                                          : dma_view{});
    }
    n->old_pair = std::exchange(l.pair, std::move(*pair));
    l.lost = false;
    changes_++;
    log_warning("controller " + bdf_ + ": lost a queue pair, and goes on with a new one");
    l.on->post([this, raw = &l, n, fresh = l.pair] {
        // Here, on the poller's thread: it alone reads views, and uses the engine.
        for (auto& [a, view] : n->views)
            a->view = std::move(view);
        raw->served.arm = [fresh] { fresh->pair.arm(); };
        raw->on->replace_nvme(raw->served, queue_of(*fresh), fresh->pair.fd(),
                              fresh->pair.has_interrupt());
        loop_.post([n] { n->old_tables.clear(); }); // and what is lost goes on the control thread
    });
}

void controller::give_up(lane& l, const std::string& why) {
    if (!std::exchange(told_gone_, true))
        log_error("controller " + bdf_ + ": " + why + "; its disks answer with errors from now on");
    l.failed = true;
    l.on->post([raw = &l] { raw->on->fail_nvme(raw->served); });
}

void controller::overdue(lane& l, std::vector<uint16_t> cids) {
    if (closing_ || l.lost || rescuing_.exchange(true))
        return;
    log_warning("controller " + bdf_ + ": " + std::to_string(cids.size()) +
                " commands are not answered after 30 s; aborting them");
    if (rescuer_.joinable())
        rescuer_.join();
    rescuer_ = std::thread([this, raw = &l, pair = l.pair, cids = std::move(cids)] {
        for (uint16_t cid : cids)
            pair->pair.abort(cid);
        std::this_thread::sleep_for(std::chrono::seconds(5));
        if (raw->served.stuck.load(std::memory_order_relaxed)) {
            log_error("controller " + bdf_ + ": aborting did not help; resetting it");
            if (auto ok = device_->reset(); !ok)
                log_error("controller " + bdf_ + ": " + ok.failure().text);
        }
        rescuing_.store(false);
    });
}

void controller::tick() {
    if (closing_)
        return;
    for (auto& l : lanes_)
        if (l->lost && !l->failed)
            recover(*l);
    auto now = device_->info();
    if (!now)
        return;
    if (now->critical_warning & ~info_.critical_warning)
        log_error("controller " + bdf_ + ": critical warning " +
                  std::to_string(now->critical_warning) +
                  " (NVMe SMART: 1 spare, 2 temperature, 4 reliability, 8 read-only, 16 backup)");
    info_.critical_warning = now->critical_warning;
    changes_ += now->events != info_.events;
    info_.events = now->events;
}

void controller_set::use(const std::string& bdf, completion done) {
    // Whoever wants one is not called from within.
    const auto later = [this, done](const result<controller*>& r) {
        loop_.post([done, r] { done(r); });
    };
    slot* free = nullptr;
    for (slot& s : slots_) {
        if (s.bdf != bdf) {
            if (s.bdf.empty() && !free)
                free = &s;
        } else if (s.what && s.users) {
            s.users++;
            return later(s.what.get());
        } else { // being opened, or let go
            s.waiting.push_back(std::move(done));
            return;
        }
    }
    if (!free)
        return later(error{"more than " + std::to_string(VQL_MAX_CONTROLLERS) + " controllers"});
    free->bdf = bdf;
    free->waiting.push_back(std::move(done));
    if (!free->worker)
        free->worker = std::make_unique<storage_worker>(loop_);
    open(*free);
}

void controller_set::open(slot& s) {
    s.worker->run<std::unique_ptr<controller>>(
        [bdf = s.bdf, index = uint32_t(&s - slots_.data()), untranslated = allow_untranslated_,
         patient = patient_, pollers = pollers_.size(), &loop = loop_] {
            return controller::open(bdf, index, untranslated, patient, pollers, loop);
        },
        [this, &s](result<std::unique_ptr<controller>> c) { opened(s, std::move(c)); });
}

void controller_set::opened(slot& s, result<std::unique_ptr<controller>> c) {
    const auto waiting = std::exchange(s.waiting, {});
    if (c) {
        s.what = std::move(*c);
        s.what->start(pollers_);
        s.users = uint32_t(waiting.size()); // all of them: one may end its use at once
    } else {
        s.bdf.clear();
    }
    const result<controller*> outcome = c ? result<controller*>(s.what.get()) : c.failure();
    for (const completion& done : waiting)
        done(outcome);
}

void controller_set::unuse(uint32_t index, std::function<void()> done) {
    slot& s = slots_[index];
    if (--s.users != 0)
        return done();
    s.what->close([this, &s, done = std::move(done)] {
        auto ended = std::make_shared<std::unique_ptr<controller>>(std::move(s.what));
        s.worker->run<void>(
            [ended] { // its queue pairs are deleted, which may wait for the drive
                ended->reset();
                return result<void>();
            },
            [this, &s, ended, done](const result<void>&) {
                ended->reset(); // where no thread was to be had
                if (s.waiting.empty())
                    s.bdf.clear();
                else
                    open(s);
                done();
            });
    });
}

void controller_set::tick() {
    for (slot& s : slots_)
        if (s.what)
            s.what->tick();
}

} // namespace vql
