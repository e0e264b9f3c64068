// SPDX-License-Identifier: GPL-2.0-only
#include "base/storage_worker.h"

#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

namespace vql {

// The control thread fills jobs and clears loop, the worker's thread takes jobs and posts to loop:
// all under the mutex. So nothing is posted to a loop that may be gone. What was posted before the
// worker ended finds loop cleared, which only its own thread, the control thread, does.
struct storage_worker::shared {
    struct job {
        std::function<void()> run;
        finish done;
    };
    std::mutex mutex;
    std::deque<job> jobs;
    bool has_thread = false;
    event_loop* loop;
};

storage_worker::storage_worker(event_loop& loop) : shared_(std::make_shared<shared>()) {
    shared_->loop = &loop;
}

storage_worker::~storage_worker() {
    std::lock_guard lock(shared_->mutex);
    shared_->loop = nullptr;
}

void storage_worker::start(std::function<void()> job, finish done) {
    std::lock_guard lock(shared_->mutex);
    shared_->jobs.push_back({std::move(job), std::move(done)});
    if (shared_->has_thread)
        return;
    try {
        std::thread([s = shared_] { work(s); }).detach();
        shared_->has_thread = true;
    } catch (const std::system_error& e) {
        auto failed = std::make_shared<shared::job>(std::move(shared_->jobs.back()));
        shared_->jobs.pop_back();
        shared_->loop->post([s = shared_, failed, why = std::string(e.what())] {
            if (s->loop)
                failed->done(error{"cannot start a thread: " + why});
        });
    }
}

void storage_worker::work(const std::shared_ptr<shared>& s) {
    for (;;) {
        shared::job next;
        {
            std::lock_guard lock(s->mutex);
            if (s->jobs.empty()) {
                s->has_thread = false;
                return;
            }
            next = std::move(s->jobs.front());
            s->jobs.pop_front();
        }
        next.run();
        next.run = nullptr; // what it holds may wait for storage, too
        std::lock_guard lock(s->mutex);
        if (s->loop)
            s->loop->post([s, done = std::move(next.done)] {
                if (s->loop)
                    done({});
            });
    }
}

} // namespace vql
