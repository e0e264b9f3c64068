// SPDX-License-Identifier: GPL-2.0-only
// Sees to it that the targets that are wanted are there: opens them, tries again those that cannot
// be opened, closes them when nobody wants them any more.
//
// All that can wait for storage runs on a worker for each target, and for each controller: what
// hangs keeps its worker, and nobody else. On the control thread.
#pragma once

#include "base/event_loop.h"
#include "base/result.h"
#include "base/storage_worker.h"
#include "daemon/config.h"
#include "daemon/controllers.h"
#include "daemon/poller.h"
#include "daemon/targets.h"
#include "engine/raw_record.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace vql {

// How long what has failed @tries times before is left alone: a second, and each time twice as
// long, half a minute at most.
inline std::chrono::seconds pause_after(uint32_t tries) {
    return std::chrono::seconds(std::min(1u << std::min(tries, 5u), 30u));
}

class wanted_target {
  public:
    enum class phase : uint8_t { opening, waiting, ready, closing };

    const target_config& settings() const { return settings_; }
    bool is_file() const { return settings_.type == target_type::uring; }
    phase now() const { return now_; }
    // "target NAME (PATH)", as the operator knows it.
    std::string title() const;
    // What it waits for, or why it is not there: for the operator. Empty: it is there, and what was
    // asked of it last is done.
    std::string problem() const;

  private:
    friend class target_keeper;
    using clock = std::chrono::steady_clock;

    wanted_target(event_loop& loop, target_config c)
        : settings_(std::move(c)), since_(clock::now()), worker_(loop) {}
    bool first_try() const { return now_ == phase::opening && !tries_; }
    void enter(phase next) {
        now_ = next;
        since_ = clock::now();
    }
    void job_begins() {
        if (!jobs_++)
            jobs_since_ = clock::now();
    }

    target_config settings_;
    phase now_ = phase::waiting;
    clock::time_point since_; // of the phase
    std::string why_;         // not ready: why it could not be opened the last time
    clock::time_point next_try_;
    uint32_t tries_ = 0;
    target* opened_ = nullptr; // ready
    bool looking_ = false;     // at its namespace
    uint32_t jobs_ = 0;        // under way: to look at it, or to make it larger
    clock::time_point jobs_since_;
    std::unique_ptr<target> ended_; // closing: what no thread could be had for
    std::vector<std::function<void()>> closed_;
    storage_worker worker_;
};

class target_keeper {
  public:
    target_keeper(event_loop& loop, target_set& targets, controller_set& controllers,
                  const std::vector<std::unique_ptr<poller>>& pollers,
                  std::shared_ptr<raw_record> served)
        : loop_(loop), targets_(targets), controllers_(controllers), pollers_(pollers),
          served_(std::move(served)) {}

    // Called when a target has become ready, or could not be opened; never from within want().
    void on_change(std::function<void(const std::string& name)> changed) {
        changed_ = std::move(changed);
    }

    // @c is to be there from now on, until drop(). No-op for a name that is wanted already.
    void want(const target_config& c);
    // @t is there already, under the name of @c.
    result<target*> adopt(const target_config& c, std::unique_ptr<target> t);
    // No disk uses it, and no configuration wants it. @done when nothing of it is open, so that it
    // can be opened again; at once if nobody knows it.
    void drop(const std::string& name, std::function<void()> done);
    // The daemon ends: what is dropped from now on will be wanted again, and is remembered as
    // served.
    void ending() { ending_ = true; }
    // Look again how large @t is, and make a regular file as large as @bytes. @done with the usable
    // size, when storage has answered.
    void grow(target& t, uint64_t bytes, std::function<void(result<uint64_t>)> done);

    // Null: nobody wants it.
    const wanted_target* find(const std::string& name) const;
    // One that is being closed.
    const wanted_target* find_closing(const std::string& name) const;
    // How many are being opened for the first time, or wait for one of their name to be closed? And
    // is one of the former on a controller?
    size_t first_tries() const;
    bool opens_controllers() const;
    // Look again at the namespaces whose controllers may have changed them; @changed for each that
    // is offline then, or online again.
    void look_at_namespaces(const std::function<void(const target&)>& changed);
    // Once a second.
    void tick();

  private:
    using entry = std::unique_ptr<wanted_target>;

    wanted_target* wanted(const std::string& name) const;
    void open(wanted_target& w);
    void open_namespace(wanted_target& w, controller& on);
    void opened(wanted_target& w, result<std::unique_ptr<target>> t);
    void failed(wanted_target& w, const std::string& why);
    result<target*> publish(wanted_target& w, std::unique_ptr<target> t);
    void let_go(wanted_target& w, target& t);
    void close(wanted_target& w, std::unique_ptr<target> t);
    void closed(wanted_target& w);

    event_loop& loop_;
    target_set& targets_;
    controller_set& controllers_;
    const std::vector<std::unique_ptr<poller>>& pollers_;
    const std::shared_ptr<raw_record> served_; // with the workers, whose threads may outlive us
    std::function<void(const std::string&)> changed_;
    bool ending_ = false;
    std::vector<entry> wanted_, closing_; // together at most VQL_MAX_TARGETS
};

} // namespace vql
