; How the parallel loops of a kernel reach threads: on the OpenMP runtime of the program, on workers
; of our own, or on the calling thread alone.
;
; TVM's code calls TVMBackendParallelLaunch through a pointer; `launcher.py` puts @launch there, and
; fills in @pool. TVM's own LLVM compiles this text for the kernel's target, and its object is linked
; with the kernel's. Nothing here is specific to an architecture but two functions of a file for each,
; and nothing is undefined: functions of libc and OpenMP are called through pointers that the process
; gives.
;
; A thread says what its loops may use in a value of its own, the request: threads | size of OpenMP's
; team << 16, where the team is 0 for our own workers. Without a request it computes alone.
;
; A loop is cut into tasks, as many for each thread. A thread takes those of its own slot, the same part
; of the loop in every call, which its cache may have, and then what is left in the slots of others. So
; a loop ends even where no other thread ever begins, and the caller waits only for threads that have
; taken a task.

%env = type { ptr, i32 }                      ; TVM's TVMParallelGroupEnv: sync handle, tasks

%pool = type {
  ptr,                                        ;  0 launch
  ptr,                                        ;  1 start
  ptr, ptr,                                   ;  2 pthread_getspecific; 3 pthread_setspecific
  ptr,                                        ;  4 pthread_create
  ptr,                                        ;  5 syscall
  ptr,                                        ;  6 sched_yield
  ptr,                                        ;  7 GOMP_parallel of the program's OpenMP runtime, or null
  ptr, ptr,                                   ;  8 omp_in_parallel and 9 omp_get_thread_num of the same
  i64,                                        ; 10 the number of the system call futex
  i32, i32,                                   ; 11 key of the requests; 12 polls of a worker before it sleeps
  i32, i32,                                   ; 13 tasks per thread on our own workers; 14 on OpenMP's
  i32, i32,                                   ; 15 workers that were started; 16 whether a caller has them
  [2 x i64],                                  ; 17 what follows changes often: a cache line of its own
  i32, i32,                                   ; 18 epoch, on which workers sleep; 19 tasks that were done
  i32, i32,                                   ; 20 workers that sleep; 21 workers that may take tasks
  ptr, ptr,                                   ; 22 the loop's function; 23 its closure
  i32, i32,                                   ; 24 its slots; 25 tasks in each
  i32, i32,                                   ; 26 what a task returned that failed; 27
  [256 x i64]                                 ; 28 slots: epoch << 32 | next task; a task of an epoch only is taken
}

%job = type { ptr, ptr, i32, i32, i32, i32, ptr }
; A loop on OpenMP's threads: 0 function, 1 closure, 2 slots, 3 tasks in each, 4 what a task returned
; that failed, 6 the next task of each slot

@pool = internal global %pool { ptr @launch, ptr @start, ptr null, ptr null, ptr null, ptr null,
  ptr null, ptr null, ptr null, ptr null, i64 0, i32 0, i32 0, i32 1, i32 1, i32 0, i32 0,
  [2 x i64] zeroinitializer, i32 0, i32 0, i32 0, i32 0, ptr null, ptr null, i32 0, i32 0, i32 0,
  i32 0, [256 x i64] zeroinitializer }, align 64

; The address of @pool as an integer, to Python: a function of tvm_ffi's convention.
define i32 @__tvm_ffi_quantmm_pool(ptr %self, ptr %arguments, i32 %count, ptr %result) {
  %value = getelementptr i8, ptr %result, i64 8
  %address = ptrtoint ptr @pool to i64
  store i32 1, ptr %result                    ; kTVMFFIInt
  store i64 %address, ptr %value
  ret i32 0
}

; The calling thread's request, an integer from Python.
define i32 @__tvm_ffi_quantmm_request(ptr %self, ptr %arguments, i32 %count, ptr %result) {
  %value = getelementptr i8, ptr %arguments, i64 8
  %request = load ptr, ptr %value
  %set = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 3)
  %key = load i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 11)
  %failed = call i32 %set(i32 %key, ptr %request)
  store i32 0, ptr %result                    ; kTVMFFINone
  ret i32 0
}

; TVMBackendParallelLaunch. The loops of kernels leave the number of tasks to the launcher, `given` is
; 0; a number is done by the caller alone.
define internal i32 @launch(ptr %function, ptr %closure, i32 %given) {
entry:
  %env = alloca %env
  %job = alloca %job
  %get = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 2)
  %key = load i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 11)
  %request.ptr = call ptr %get(i32 %key)
  %request.long = ptrtoint ptr %request.ptr to i64
  %request = trunc i64 %request.long to i32
  %threads = and i32 %request, 65535
  %team = lshr i32 %request, 16
  %free = icmp eq i32 %given, 0
  %several = icmp ugt i32 %threads, 1
  %shared = and i1 %free, %several
  br i1 %shared, label %choose, label %alone

; A thread that is in a parallel region already computes alone: its siblings have work of their own.
choose:
  %in_parallel = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 8)
  %known = icmp ne ptr %in_parallel, null
  br i1 %known, label %ask.inside, label %ask.own

ask.inside:
  %inside = call i32 %in_parallel()
  %nested = icmp ne i32 %inside, 0
  br i1 %nested, label %alone, label %ask.pool

ask.pool:
  %own = icmp eq i32 %team, 0
  br i1 %own, label %ask.own, label %host

; The team has its usual size, whatever share of it takes part: libgomp ends the threads that a
; smaller team leaves out, and starts them again for the next one.
host:
  %host.tasks = load i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 14)
  %next.tasks = alloca i32, i32 %threads
  %bytes = mul i32 %threads, 4
  call void @llvm.memset.p0.i32(ptr %next.tasks, i8 0, i32 %bytes, i1 false)
  %job.closure = getelementptr %job, ptr %job, i32 0, i32 1
  %job.slots = getelementptr %job, ptr %job, i32 0, i32 2
  %job.tasks = getelementptr %job, ptr %job, i32 0, i32 3
  %job.failed = getelementptr %job, ptr %job, i32 0, i32 4
  %job.next = getelementptr %job, ptr %job, i32 0, i32 6
  store ptr %function, ptr %job
  store ptr %closure, ptr %job.closure
  store i32 %threads, ptr %job.slots
  store i32 %host.tasks, ptr %job.tasks
  store i32 0, ptr %job.failed
  store ptr %next.tasks, ptr %job.next
  %parallel = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 7)
  call void %parallel(ptr @work_for_host, ptr %job, i32 %team, i32 0)
  %host.failed = load i32, ptr %job.failed
  ret i32 %host.failed

; Our workers serve one caller at a time; others compute alone meanwhile.
ask.own:
  %asked = cmpxchg ptr getelementptr (%pool, ptr @pool, i32 0, i32 16), i32 0, i32 1 seq_cst seq_cst
  %got = extractvalue { i32, i1 } %asked, 1
  br i1 %got, label %publish, label %alone

; No task can be taken while the job changes: a worker that is late still has the last epoch.
publish:
  %last = load atomic i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 18) seq_cst, align 4
  %epoch = add i32 %last, 1
  %helpers = sub i32 %threads, 1
  %own.tasks = load i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 13)
  %own.all = mul i32 %threads, %own.tasks
  call void @set_slots(i32 %threads, i32 %last, i32 -1)
  store ptr %function, ptr getelementptr (%pool, ptr @pool, i32 0, i32 22)
  store ptr %closure, ptr getelementptr (%pool, ptr @pool, i32 0, i32 23)
  store i32 %threads, ptr getelementptr (%pool, ptr @pool, i32 0, i32 24)
  store i32 %own.tasks, ptr getelementptr (%pool, ptr @pool, i32 0, i32 25)
  store i32 0, ptr getelementptr (%pool, ptr @pool, i32 0, i32 26)
  store i32 %helpers, ptr getelementptr (%pool, ptr @pool, i32 0, i32 21)
  store atomic i32 0, ptr getelementptr (%pool, ptr @pool, i32 0, i32 19) seq_cst, align 4
  call void @set_slots(i32 %threads, i32 %epoch, i32 0)
  store atomic i32 %epoch, ptr getelementptr (%pool, ptr @pool, i32 0, i32 18) seq_cst, align 4
  %asleep = load atomic i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 20) seq_cst, align 4
  %anybody = icmp ne i32 %asleep, 0
  br i1 %anybody, label %wake, label %take

; FUTEX_WAKE_BITSET of the workers that may take part: worker i has bit i % 32.
wake:
  %most = icmp ugt i32 %helpers, 31
  %bit = shl i32 1, %helpers
  %below = sub i32 %bit, 1
  %mask = select i1 %most, i32 -1, i32 %below
  %call = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 5)
  %futex = load i64, ptr getelementptr (%pool, ptr @pool, i32 0, i32 10)
  %woken = call i64 (i64, ...) %call(i64 %futex, ptr getelementptr (%pool, ptr @pool, i32 0, i32 18), i64 138, i64 2147483647, ptr null, ptr null, i32 %mask)
  br label %take

take:
  call void @work(i32 %epoch, i32 0)
  br label %wait

wait:
  %polls = phi i32 [ 0, %take ], [ %polls.next, %poll.again ]
  %done = load atomic i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 19) seq_cst, align 4
  %all = icmp uge i32 %done, %own.all
  br i1 %all, label %finish, label %poll

poll:
  %polls.next = add i32 %polls, 1
  %long = icmp ugt i32 %polls, 200
  br i1 %long, label %give.way, label %poll.again

give.way:
  %yield = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 6)
  %yielded = call i32 %yield()
  br label %poll.again

poll.again:
  br label %wait

finish:
  %own.failed = load i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 26)
  store atomic i32 0, ptr getelementptr (%pool, ptr @pool, i32 0, i32 16) seq_cst, align 4
  ret i32 %own.failed

alone:
  %tasks = call i32 @llvm.umax.i32(i32 %given, i32 1)
  %env.tasks = getelementptr %env, ptr %env, i32 0, i32 1
  store ptr null, ptr %env
  store i32 %tasks, ptr %env.tasks
  br label %next

next:
  %task = phi i32 [ 0, %alone ], [ %task.next, %next ]
  %failed = phi i32 [ 0, %alone ], [ %failed.next, %next ]
  %returned = call i32 %function(i32 %task, ptr %env, ptr %closure)
  %failed.next = or i32 %failed, %returned
  %task.next = add i32 %task, 1
  %more = icmp ult i32 %task.next, %tasks
  br i1 %more, label %next, label %end

end:
  ret i32 %failed.next
}

; A thread of OpenMP's team takes tasks of a %job.
define internal void @work_for_host(ptr %job) {
entry:
  %env = alloca %env
  %number = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 9)
  %own = call i32 %number()
  %job.closure = getelementptr %job, ptr %job, i32 0, i32 1
  %job.slots = getelementptr %job, ptr %job, i32 0, i32 2
  %job.tasks = getelementptr %job, ptr %job, i32 0, i32 3
  %job.failed = getelementptr %job, ptr %job, i32 0, i32 4
  %job.next = getelementptr %job, ptr %job, i32 0, i32 6
  %function = load ptr, ptr %job
  %closure = load ptr, ptr %job.closure
  %slots = load i32, ptr %job.slots
  %tasks = load i32, ptr %job.tasks
  %next = load ptr, ptr %job.next
  %all = mul i32 %slots, %tasks
  %env.tasks = getelementptr %env, ptr %env, i32 0, i32 1
  store ptr null, ptr %env
  store i32 %all, ptr %env.tasks
  %welcome = icmp ult i32 %own, %slots
  br i1 %welcome, label %begin, label %end

begin:
  %mode = call i64 @set_usual_floats()
  br label %slot

slot:
  %step = phi i32 [ 0, %begin ], [ %step.next, %other ]
  %place = add i32 %own, %step
  %this = urem i32 %place, %slots
  %first = mul i32 %this, %tasks
  %next.task = getelementptr i32, ptr %next, i32 %this
  br label %take

take:
  %task = atomicrmw add ptr %next.task, i32 1 seq_cst
  %more = icmp ult i32 %task, %tasks
  br i1 %more, label %run, label %other

run:
  %index = add i32 %first, %task
  %returned = call i32 %function(i32 %index, ptr %env, ptr %closure)
  %fine = icmp eq i32 %returned, 0
  br i1 %fine, label %take, label %fail

fail:
  store atomic i32 %returned, ptr %job.failed seq_cst, align 4
  br label %take

other:
  %step.next = add i32 %step, 1
  %again = icmp ult i32 %step.next, %slots
  br i1 %again, label %slot, label %leave

leave:
  call void @set_floats(i64 %mode)
  br label %end

end:
  ret void
}

; Have the first `count` slots stand at a task of an epoch.
define internal void @set_slots(i32 %count, i32 %epoch, i32 %task) {
entry:
  %epoch.long = zext i32 %epoch to i64
  %high = shl i64 %epoch.long, 32
  %low = zext i32 %task to i64
  %value = or i64 %high, %low
  br label %set

set:
  %i = phi i32 [ 0, %entry ], [ %i.next, %set ]
  %slot = getelementptr %pool, ptr @pool, i32 0, i32 28, i32 %i
  store atomic i64 %value, ptr %slot seq_cst, align 8
  %i.next = add i32 %i, 1
  %more = icmp ult i32 %i.next, %count
  br i1 %more, label %set, label %end

end:
  ret void
}

; Take tasks of @pool's job while its epoch lasts, those of slot `own` first.
define internal void @work(i32 %epoch, i32 %own) {
entry:
  %env = alloca %env
  %env.tasks = getelementptr %env, ptr %env, i32 0, i32 1
  store ptr null, ptr %env
  %slots = load atomic i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 24) seq_cst, align 4
  br label %slot

slot:
  %step = phi i32 [ 0, %entry ], [ %step.next, %other ]
  %place = add i32 %own, %step
  %this = urem i32 %place, %slots
  %next.task = getelementptr %pool, ptr @pool, i32 0, i32 28, i32 %this
  br label %look

look:
  %seen = load atomic i64, ptr %next.task seq_cst, align 8
  %seen.high = lshr i64 %seen, 32
  %seen.epoch = trunc i64 %seen.high to i32
  %task = trunc i64 %seen to i32
  %tasks = load atomic i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 25) seq_cst, align 4
  %same = icmp eq i32 %seen.epoch, %epoch
  %left = icmp ult i32 %task, %tasks
  %there = and i1 %same, %left
  br i1 %there, label %take, label %other

take:
  %after = add i64 %seen, 1
  %asked = cmpxchg ptr %next.task, i64 %seen, i64 %after seq_cst seq_cst
  %got = extractvalue { i64, i1 } %asked, 1
  br i1 %got, label %run, label %look

run:
  %function = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 22)
  %closure = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 23)
  %all = mul i32 %slots, %tasks
  store i32 %all, ptr %env.tasks
  %first = mul i32 %this, %tasks
  %index = add i32 %first, %task
  %returned = call i32 %function(i32 %index, ptr %env, ptr %closure)
  %fine = icmp eq i32 %returned, 0
  br i1 %fine, label %count, label %fail

fail:
  store atomic i32 %returned, ptr getelementptr (%pool, ptr @pool, i32 0, i32 26) seq_cst, align 4
  br label %count

count:
  %before = atomicrmw add ptr getelementptr (%pool, ptr @pool, i32 0, i32 19), i32 1 seq_cst
  br label %look

other:
  %step.next = add i32 %step, 1
  %again = icmp ult i32 %step.next, %slots
  br i1 %again, label %slot, label %end

end:
  ret void
}

; A worker for ever: poll for a new epoch, then sleep for one; one that may not take part sleeps. The
; epoch in which it starts is not its own: in a forked child that may be a job of a thread that is gone.
define internal ptr @worker(ptr %argument) {
entry:
  %index.long = ptrtoint ptr %argument to i64
  %index = trunc i64 %index.long to i32
  %place = and i32 %index, 31
  %bit = shl i32 1, %place
  %most = load i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 12)
  %inherited = call i64 @set_usual_floats()
  %first = load atomic i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 18) seq_cst, align 4
  br label %poll

poll:
  %seen = phi i32 [ %first, %entry ], [ %seen, %give.way ], [ %seen, %sleep ], [ %epoch, %work ], [ %epoch, %idle ]
  %polls = phi i32 [ 0, %entry ], [ %polls.next, %give.way ], [ 0, %sleep ], [ 0, %work ], [ %most, %idle ]
  %epoch = load atomic i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 18) seq_cst, align 4
  %same = icmp eq i32 %epoch, %seen
  br i1 %same, label %wait, label %new

wait:
  %polls.next = add i32 %polls, 1
  %on = icmp ult i32 %polls, %most
  br i1 %on, label %give.way, label %sleep

give.way:
  %yield = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 6)
  %yielded = call i32 %yield()
  br label %poll

; FUTEX_WAIT_BITSET
sleep:
  %more = atomicrmw add ptr getelementptr (%pool, ptr @pool, i32 0, i32 20), i32 1 seq_cst
  %call = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 5)
  %futex = load i64, ptr getelementptr (%pool, ptr @pool, i32 0, i32 10)
  %slept = call i64 (i64, ...) %call(i64 %futex, ptr getelementptr (%pool, ptr @pool, i32 0, i32 18), i64 137, i32 %seen, ptr null, ptr null, i32 %bit)
  %less = atomicrmw sub ptr getelementptr (%pool, ptr @pool, i32 0, i32 20), i32 1 seq_cst
  br label %poll

new:
  %limit = load atomic i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 21) seq_cst, align 4
  %welcome = icmp ult i32 %index, %limit
  br i1 %welcome, label %work, label %idle

work:
  %own = add i32 %index, 1
  call void @work(i32 %epoch, i32 %own)
  br label %poll

idle:
  br label %poll
}

; Start workers until there are `wanted`; how many there are. One caller at a time.
define internal i32 @start(i32 %wanted) {
entry:
  %thread = alloca i64
  %create = load ptr, ptr getelementptr (%pool, ptr @pool, i32 0, i32 4)
  br label %look

look:
  %there = load i32, ptr getelementptr (%pool, ptr @pool, i32 0, i32 15)
  %enough = icmp uge i32 %there, %wanted
  br i1 %enough, label %end, label %another

another:
  %index = zext i32 %there to i64
  %argument = inttoptr i64 %index to ptr
  %failed = call i32 %create(ptr %thread, ptr null, ptr @worker, ptr %argument)
  %started = icmp eq i32 %failed, 0
  br i1 %started, label %count, label %end

count:
  %more = add i32 %there, 1
  store i32 %more, ptr getelementptr (%pool, ptr @pool, i32 0, i32 15)
  br label %look

end:
  ret i32 %there
}

declare i32 @llvm.umax.i32(i32, i32)
declare void @llvm.memset.p0.i32(ptr, i8, i32, i1)
