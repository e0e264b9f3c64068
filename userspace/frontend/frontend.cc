// SPDX-License-Identifier: GPL-2.0-only
#include "frontend/frontend.h"

#include <memory>

namespace vql {

void frontend::start_ring(ring_state& r) {
    r.running = true;
    running_++;
    host_.start_queue(r.vq);
}

void frontend::stop_then(std::vector<ring_state*> rings, std::function<void()> then) {
    std::erase_if(rings, [](ring_state* r) { return !r->running; });
    if (rings.empty())
        return then();
    busy_ = true;
    auto left = std::make_shared<size_t>(rings.size());
    for (ring_state* r : rings) {
        host_.stop_queue(r->vq, [this, r, left, then] {
            r->running = false;
            running_--;
            r->base = r->vq.ring.next_avail;
            if (--*left == 0)
                idle_then(then);
        });
    }
}

void frontend::idle_then(const std::function<void()>& then) {
    busy_ = false;
    then();
    while (!busy_ && !when_idle_.empty()) {
        auto next = std::move(when_idle_.front());
        when_idle_.erase(when_idle_.begin());
        next();
    }
}

} // namespace vql
