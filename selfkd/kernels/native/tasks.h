// Numbered tasks over a few threads; whoever is free takes the next.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

namespace tasks {

template <class Work>
void run(int64_t count, int threads, const Work &work) {
  std::atomic<int64_t> next{0};
  auto take = [&] {
    for (int64_t at; (at = next.fetch_add(1)) < count;) work(at);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads && i < count; i++) others.emplace_back(take);
  take();
  for (auto &thread : others) thread.join();
}

// Scratch space of the calling thread, aligned to cache lines; valid until it asks again.
struct Free {
  void operator()(void *p) const { std::free(p); }
};
template <int Slot>
inline void *scratch(size_t bytes) {
  thread_local std::unique_ptr<void, Free> held;
  thread_local size_t size = 0;
  if (size < bytes) {
    size = (bytes + 4095) / 4096 * 4096;
    held.reset(std::aligned_alloc(4096, size));
  }
  return held.get();
}

}  // namespace tasks
