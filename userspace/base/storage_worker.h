// SPDX-License-Identifier: GPL-2.0-only
// Runs what can wait for storage (open, stat, lock, grow, close, …) off the control thread, which
// must never do that: hung storage would stop the answers of the whole daemon.
//
// One worker for each thing that can hang by itself, so that a stuck job keeps nobody else's
// waiting. Its jobs run one after the other. There is a thread only while there is a job.
#pragma once

#include "base/event_loop.h"
#include "base/result.h"

#include <functional>
#include <memory>
#include <optional>

namespace vql {

class storage_worker {
  public:
    explicit storage_worker(event_loop& loop);
    // What was asked for still runs, on its thread, which may outlive us; nobody is told of it.
    ~storage_worker();
    storage_worker(const storage_worker&) = delete;
    storage_worker& operator=(const storage_worker&) = delete;

    // Run @job on the worker's thread, then @done with its result on the control thread. What @job
    // holds is released on the worker's thread. When no thread can be had @done gets the error, and
    // @job is not run. On the control thread.
    template <class T>
    void run(std::function<result<T>()> job, std::function<void(result<T>)> done) {
        auto outcome = std::make_shared<std::unique_ptr<result<T>>>();
        start(
            [job = std::move(job), outcome]() mutable {
                outcome->reset(new result<T>(job()));
                job = nullptr;
            },
            [outcome, done = std::move(done)](const std::optional<error>& no_thread) {
                done(no_thread ? result<T>(*no_thread) : std::move(**outcome));
            });
    }

  private:
    struct shared;
    using finish = std::function<void(const std::optional<error>&)>;
    void start(std::function<void()> job, finish done);
    static void work(const std::shared_ptr<shared>& s);

    std::shared_ptr<shared> shared_; // with the thread
};

} // namespace vql
