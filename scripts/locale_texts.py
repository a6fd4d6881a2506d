"""Names of nodes, commands and settings in the languages of ComfyUI's page. English is in the code itself."""

# ruff: noqa: RUF001 - letters of other writings are meant

LANGUAGES = ("zh", "ja", "ko", "ru")

NODES = {
    "LoomDemoModel": ("Loom 演示模型", "Loom デモモデル", "Loom 데모 모델", "Loom: демо-модель"),
    "LoomDataset": ("Loom 数据集（文件夹）", "Loom データセット（フォルダー）", "Loom 데이터셋 (폴더)", "Loom: набор данных (папка)"),
    "LoomDatasetImages": ("Loom 数据集（图像）", "Loom データセット（画像）", "Loom 데이터셋 (이미지)", "Loom: набор данных (изображения)"),
    "LoomDatasetFile": ("Loom 数据集（文件）", "Loom データセット（ファイル）", "Loom 데이터셋 (파일)", "Loom: набор данных (файл)"),
    "LoomCache": ("Loom 缓存", "Loom キャッシュ", "Loom 캐시", "Loom: кэш"),
    "LoomNetwork": ("Loom 网络", "Loom ネットワーク", "Loom 네트워크", "Loom: сеть"),
    "LoomOptimizer": ("Loom 优化器", "Loom オプティマイザー", "Loom 옵티마이저", "Loom: оптимизатор"),
    "LoomObjective": ("Loom 训练目标", "Loom 学習目標", "Loom 학습 목표", "Loom: цель обучения"),
    "LoomMemory": ("Loom 内存", "Loom メモリ", "Loom 메모리", "Loom: память"),
    "LoomValidation": ("Loom 验证", "Loom 検証", "Loom 검증", "Loom: проверка"),
    "LoomBaseLora": ("Loom 基础 LoRA", "Loom ベース LoRA", "Loom 기본 LoRA", "Loom: базовая LoRA"),
    "LoomImportSettings": ("Loom 导入设置", "Loom 設定のインポート", "Loom 설정 가져오기", "Loom: импорт настроек"),
    "LoomTrain": ("Loom 训练 LoRA", "Loom LoRA 学習", "Loom LoRA 학습", "Loom: обучение LoRA"),
    "LoomWait": ("Loom 等待训练", "Loom 学習の完了を待つ", "Loom 학습 기다리기", "Loom: ждать обучения"),
    "LoomRun": ("Loom 训练记录（磁盘）", "Loom 学習の記録（ディスク）", "Loom 학습 기록 (디스크)", "Loom: запуск (с диска)"),
    "LoomCheckpoints": ("Loom 检查点", "Loom チェックポイント", "Loom 체크포인트", "Loom: контрольные точки"),
    "LoomGuidance": ("Loom 引导", "Loom ガイダンス", "Loom 가이던스", "Loom: guidance"),
    "LoomSweep": ("Loom 对比渲染", "Loom 比較レンダリング", "Loom 비교 렌더링", "Loom: сравнительный рендер"),
    "LoomScore": ("Loom 评分", "Loom スコア", "Loom 점수", "Loom: оценка"),
    "LoomStrip": ("Loom 对比图", "Loom 比較シート", "Loom 비교 이미지", "Loom: лист сравнения"),
    "LoomAPG": ("Loom APG", "Loom APG", "Loom APG", "Loom: APG"),
    "LoomLoraInspect": ("Loom 检查 LoRA", "Loom LoRA を調べる", "Loom LoRA 검사", "Loom: осмотр LoRA"),
    "LoomLoraResize": ("Loom 调整 LoRA 秩", "Loom LoRA のランク変更", "Loom LoRA 랭크 변경", "Loom: изменить ранг LoRA"),
    "LoomLoraMerge": ("Loom 合并 LoRA", "Loom LoRA をマージ", "Loom LoRA 병합", "Loom: слияние LoRA"),
    "LoomLoraConvert": ("Loom 转换 LoRA", "Loom LoRA を変換", "Loom LoRA 변환", "Loom: преобразовать LoRA"),
    "LoomLoraExtract": ("Loom 提取 LoRA", "Loom LoRA を抽出", "Loom LoRA 추출", "Loom: извлечь LoRA"),
    "LoomLoraMergeBase": ("Loom 将 LoRA 合并到基础模型", "Loom LoRA をベースモデルにマージ", "Loom LoRA를 기본 모델에 병합", "Loom: слить LoRA с базовой моделью"),
    "LoomImageStrip": ("Loom 图像对比图", "Loom 画像の比較シート", "Loom 이미지 비교", "Loom: лист изображений"),
}  # fmt: skip

COMMANDS = {
    "lora_loom.open": ("LoRA Loom：打开训练列表", "LoRA Loom：学習の一覧を開く", "LoRA Loom: 학습 목록 열기", "LoRA Loom: открыть список запусков"),
    "lora_loom.new": ("LoRA Loom：新建训练", "LoRA Loom：新しい学習", "LoRA Loom: 새 학습", "LoRA Loom: новый запуск"),
    "lora_loom.pause": ("LoRA Loom：暂停所有训练", "LoRA Loom：すべての学習を一時停止", "LoRA Loom: 모든 학습 일시정지", "LoRA Loom: приостановить все запуски"),
    "lora_loom.resume": ("LoRA Loom：继续已暂停的训练", "LoRA Loom：一時停止した学習を再開", "LoRA Loom: 일시정지한 학습 계속", "LoRA Loom: продолжить приостановленные"),
    "lora_loom.save": ("LoRA Loom：立即保存检查点", "LoRA Loom：今すぐチェックポイントを保存", "LoRA Loom: 지금 체크포인트 저장", "LoRA Loom: сохранить контрольную точку"),
    "lora_loom.sample": ("LoRA Loom：立即生成样图", "LoRA Loom：今すぐサンプルを生成", "LoRA Loom: 지금 샘플 만들기", "LoRA Loom: сделать образцы сейчас"),
}  # fmt: skip

SETTINGS = {
    "lora_loom.toasts": ("训练结束时提示", "学習が終わったら知らせる", "학습이 끝나면 알리기", "Сообщать об окончании обучения"),
    "lora_loom.notify": ("训练结束时发送浏览器通知", "学習が終わったらブラウザーで通知", "학습이 끝나면 브라우저 알림", "Уведомление браузера об окончании обучения"),
    "lora_loom.ticker": ("在顶栏显示正在进行的训练", "学習中のものを上部バーに表示", "진행 중인 학습을 상단 바에 표시", "Текущее обучение в верхней панели"),
}  # fmt: skip
