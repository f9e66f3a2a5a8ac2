"""The words of `instructions.py`: what a question may name, and each skill's wordings.

The last two wordings of each skill and language are held out.
"""

WORDS = {
  'names': {
    'english': ('Ada', 'Ben', 'Chen', 'Dina', 'Emil', 'Fatou', 'Grace', 'Hugo', 'Ines', 'Jonas'),
    'chinese': ('小明', '小红', '王芳', '李雷', '韩梅', '张伟', '刘洋', '陈静', '赵磊', '周婷'),
  },
  'cities': {
    'english': ('Paris', 'Lima', 'Oslo', 'Cairo', 'Delhi', 'Boston', 'Nairobi', 'Sydney'),
    'chinese': ('北京', '上海', '广州', '成都', '杭州', '西安', '南京', '武汉'),
  },
  'things': {
    'english': (
      *(
        'apple',
        'book',
        'cat',
        'dog',
        'fish',
        'flower',
        'hand',
        'horse',
        'house',
        'moon',
        'mountain',
      ),
      *('paper', 'rain', 'river', 'school', 'sea', 'snow', 'sun', 'table', 'tea', 'tree', 'water'),
    ),
    'chinese': (
      *('苹果', '书', '猫', '狗', '鱼', '花', '手', '马', '房子', '月亮', '山'),
      *('纸', '雨', '河', '学校', '海', '雪', '太阳', '桌子', '茶', '树', '水'),
    ),
  },
  'days': {
    'english': (*('Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday'),),
    'chinese': ('星期一', '星期二', '星期三', '星期四', '星期五', '星期六', '星期日'),
  },
}

WORDINGS = {
  'addition': {
    'english': (
      'What is {a} + {b}?',
      'Add {a} and {b}.',
      'Compute the sum of {a} and {b}.',
      'How much is {a} plus {b}?',
      'Please work out {a} plus {b} for me.',
      'Tell me the total of {a} and {b}.',
    ),
    'chinese': (
      '{a} + {b}等于多少？',
      '计算{a}加{b}。',
      '求{a}与{b}的和。',
      '{a}加上{b}是多少？',
      '请帮我算一下{a}加{b}的结果。',
      '把{a}和{b}合起来是多少？',
    ),
  },
  'subtraction': {
    'english': (
      'What is {a} - {b}?',
      'Subtract {b} from {a}.',
      'How much is {a} minus {b}?',
      'Compute the difference of {a} and {b}.',
      'Take {b} away from {a}.',
      'What remains of {a} without {b}?',
    ),
    'chinese': (
      '{a} - {b}等于多少？',
      '计算{a}减{b}。',
      '求{a}与{b}的差。',
      '{a}减去{b}是多少？',
      '从{a}中去掉{b}，还剩多少？',
      '请帮我算一下{a}减{b}的结果。',
    ),
  },
  'multiplication': {
    'english': (
      'What is {a} * {b}?',
      'Multiply {a} by {b}.',
      'How much is {a} times {b}?',
      'Compute the product of {a} and {b}.',
      'What do {b} boxes of {a} make?',
      'Please work out {a} times {b} for me.',
    ),
    'chinese': (
      '{a} * {b}等于多少？',
      '计算{a}乘{b}。',
      '求{a}与{b}的积。',
      '{a}乘以{b}是多少？',
      '{b}个{a}一共是多少？',
      '请帮我算一下{a}乘{b}的结果。',
    ),
  },
  'larger': {
    'english': (
      'Which is larger, {a} or {b}?',
      'Compare {a} and {b}.',
      'Is {a} or {b} the larger number?',
      'Name the larger of {a} and {b}.',
      'Of {a} and {b}, which one is more?',
      'Tell me which of {a} and {b} is bigger.',
    ),
    'chinese': (
      '{a}和{b}哪个大？',
      '比较{a}和{b}。',
      '{a}与{b}中较大的是哪个？',
      '说出{a}和{b}中较大的数。',
      '{a}跟{b}相比，谁更大？',
      '请告诉我{a}和{b}哪一个更大。',
    ),
  },
  'sorting': {
    'english': (
      'Sort these numbers: {listed}.',
      'Put in ascending order: {listed}.',
      'Order {listed} from small to large.',
      'Sort from the smallest to the largest: {listed}',
      'Arrange {listed} so that they grow.',
      'What are {listed} in increasing order?',
    ),
    'chinese': (
      '把这些数排序：{listed}。',
      '按从小到大的顺序排列：{listed}。',
      '将{listed}从小到大排列。',
      '升序排列：{listed}',
      '请把{listed}由小到大写出来。',
      '{listed}从小到大应该怎么排？',
    ),
  },
  'reversing': {
    'english': (
      'Reverse this list: {listed}.',
      'Write in reverse order: {listed}.',
      'Turn the list around: {listed}',
      'Give {listed} from the last to the first.',
      'Say {listed} backwards, word by word.',
      'List {listed}, but the last one first.',
    ),
    'chinese': (
      '把这个列表倒过来：{listed}。',
      '按相反的顺序写：{listed}。',
      '反转列表：{listed}',
      '从最后一个到第一个写出{listed}。',
      '请倒着说：{listed}。',
      '列出{listed}，但最后一个排在最前。',
    ),
  },
  'counting': {
    'english': (
      'How many words are there: {listed}?',
      'Count the items: {listed}.',
      'How many items has the list {listed}?',
      'Count these words: {listed}',
      'What is the number of things in {listed}?',
      'Tell me how long the list {listed} is.',
    ),
    'chinese': (
      '这里有多少个词：{listed}？',
      '数一数：{listed}。',
      '列表{listed}有几项？',
      '数这些词：{listed}',
      '{listed}一共是几个？',
      '请告诉我{listed}里有多少项。',
    ),
  },
  'place': {
    'english': (
      '{name} lives in {city} and has {count} of these: {thing}. Where does {name} live?',
      'In {city} lives {name}, who likes the word {thing}. In which city is {name} at home?',
      '{name}, who owns {count} books, lives in {city}. Where does {name} live?',
      'Read: {name} moved to {city} {count} years ago. Where does {name} live now?',
      '{name} has {count} friends in {city}, where {name} also lives. Name the home of {name}.',
      'After {count} years {name} still lives in {city}. Which place is that?',
    ),
    'chinese': (
      '{name}住在{city}，有{count}本书。{name}住在哪里？',
      '{city}住着{name}，他喜欢“{thing}”这个词。{name}的家在哪个城市？',
      '{name}有{count}个朋友，住在{city}。{name}住在哪里？',
      '阅读：{name}{count}年前搬到{city}。{name}现在住在哪里？',
      '过了{count}年，{name}还住在{city}。那是什么地方？',
      '{name}在{city}有{count}个邻居。请说出{name}住的城市。',
    ),
  },
  'record': {
    'english': (
      'Write as JSON: {name}, {age} years old, from {city}.',
      '{name} is {age} and comes from {city}. Give name, age and city as JSON.',
      'Make a JSON object of: name {name}, age {age}, city {city}.',
      'JSON, please: {name}, aged {age}, of {city}.',
      'Turn this into JSON: {name} from {city} is {age}.',
      'As a JSON object, describe {name}, who is {age} and lives in {city}.',
    ),
    'chinese': (
      '写成JSON：{name}，{age}岁，来自{city}。',
      '{name}今年{age}岁，来自{city}。用JSON给出姓名、年龄和城市。',
      '做一个JSON对象：姓名{name}，年龄{age}，城市{city}。',
      '请用JSON：{name}，{age}岁，{city}人。',
      '把这句话变成JSON：来自{city}的{name}{age}岁。',
      '用JSON对象描述{name}：{age}岁，住在{city}。',
    ),
  },
  'minutes': {
    'english': (
      'How many minutes are {hours} hours and {rest} minutes?',
      'Convert {hours} h {rest} min to minutes.',
      'Express {hours} hours {rest} minutes in minutes.',
      'A film takes {hours} hours and {rest} minutes. How many minutes is that?',
      'A train rides for {hours} hours and {rest} minutes. Give the time in minutes.',
      'What do {hours} hours and {rest} minutes make in minutes alone?',
    ),
    'chinese': (
      '{hours}小时{rest}分钟是多少分钟？',
      '把{hours}小时{rest}分钟换算成分钟。',
      '用分钟表示{hours}小时{rest}分钟。',
      '一部电影长{hours}小时{rest}分钟，是多少分钟？',
      '火车开了{hours}小时{rest}分钟，请用分钟表示。',
      '{hours}小时又{rest}分钟，合计多少分钟？',
    ),
  },
  'weekday': {
    'english': (
      'Today is {day}. Which day is it in {later} days?',
      'Which weekday comes {later} days after {day}?',
      'If it is {day} now, what day is it {later} days later?',
      'Count {later} days on from {day}: which day is it?',
      '{later} days pass after a {day}. Name the weekday.',
      'A parcel sent on {day} takes {later} days. On which weekday does it come?',
    ),
    'chinese': (
      '今天是{day}，{later}天后是星期几？',
      '{day}之后{later}天是星期几？',
      '如果现在是{day}，过{later}天是星期几？',
      '从{day}往后数{later}天，是星期几？',
      '{day}寄出的包裹要走{later}天，星期几到？',
      '{day}过了{later}天，请说出那天是星期几。',
    ),
  },
  'translation': {
    'english': (
      'What is "{word}" in Chinese?',
      'Translate "{word}" into Chinese.',
      'Give the Chinese word for "{word}".',
      'How does one say "{word}" in Chinese?',
      'Which Chinese word means "{word}"?',
      'Put "{word}" into Chinese.',
    ),
    'chinese': (
      '“{word}”用英语怎么说？',
      '把“{word}”翻译成英语。',
      '给出“{word}”的英语单词。',
      '“{word}”的英文是什么？',
      '哪个英语单词的意思是“{word}”？',
      '请用英语写出“{word}”。',
    ),
  },
}
